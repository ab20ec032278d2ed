"""What people write, read: a model, an image, a target, a baseline, a box by name or in words.

The command line, runs over datasets and the web page are told the same things in the same words.
"""
