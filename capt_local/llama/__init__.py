"""llama.cpp behind the `Model` protocol: the only room that imports the binding."""
