"""The web page (``zeroline serve``, extra ``zeroline[web]``): questions from a browser, answered with the page of a report.

``limits`` says how much a request may bring, ``offered`` which models it may ask, ``answers`` computes (no Gradio there), ``app`` lays the page out
and ``serve`` runs it. Nothing that a browser sends is used as a path; a question is put to what the server named at its start, or refused.
"""
