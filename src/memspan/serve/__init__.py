"""One process that answers over HTTP: OpenAI's chat completions, memories, metrics. Needs the extra `serve`."""
