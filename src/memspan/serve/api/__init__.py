"""The routes: each reads its request, calls what does the work, and writes its response."""
