"""The gateway: OpenAI on one side, vLLM on the other. The only room that speaks HTTP."""
