"""How fast answers come, and what it costs beside llama.cpp itself."""
