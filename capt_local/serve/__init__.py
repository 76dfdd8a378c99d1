"""`capt-local serve`: an OpenAI-compatible server on this machine, and a page for clinicians."""
