"""Records as one page: a self-contained HTML file with a little plain JavaScript, which asks nothing of anywhere.

``html`` renders chapters, ``save`` writes the file. What a chapter is, ``parts`` says; how a record becomes one, ``chapters``.
"""

from zeroline.report.page.chapters import chapter
from zeroline.report.page.render import html, save

__all__ = ["chapter", "html", "save"]
