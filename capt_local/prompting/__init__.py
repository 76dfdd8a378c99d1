"""Prompts: from messages to tokens, with people's text kept apart from template text."""
