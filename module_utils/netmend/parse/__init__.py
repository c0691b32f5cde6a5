"""Readers of what a node's commands and files say. Text in, shapes of model.py out.

Nothing here runs or opens anything.
Every reader raises ValueError, naming the line, where the text is not what the tool is known to print.
"""
