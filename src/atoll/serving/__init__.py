"""Serving: a model behind an OpenAI-compatible endpoint, many requests at a time.

Start at request.py, the nouns that the engine and its callers share. engine.py computes, api.py
speaks HTTP. Neither knows where a model came from: the command opens it and passes it in.
"""
