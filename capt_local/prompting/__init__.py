"""Prompts: messages become tokens, what people wrote apart from what a template wrote."""
