"""Requests of chat clients, as they send them: the fields and the forms of messages that each adds of its own."""

from __future__ import annotations

from typing import Any

_USER = {"role": "user", "content": "Where does the otter live?"}
_CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}

REQUESTS: dict[str, dict[str, Any]] = {
    "openai-python, an answer given back": {
        "messages": [
            {"role": "user", "content": "Hello"},
            {
                "role": "assistant",
                "content": "Hello.",
                "refusal": None,
                "annotations": [],
                "audio": None,
                "function_call": None,
                "tool_calls": None,
            },
            _USER,
        ],
        "max_completion_tokens": 6,
        "store": False,
        "metadata": {"run": "1"},
        "service_tier": "auto",
        "parallel_tool_calls": True,
        "safety_identifier": "x",
        "prompt_cache_key": "x",
        "verbosity": "low",
        "reasoning_effort": "minimal",
    },
    "openai-node, a helper": {"messages": [_USER], "stream": True, "stream_options": {"include_usage": True}},
    "langchain": {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Weather?", "name": "ann"},
            {"role": "assistant", "content": None, "tool_calls": [_CALL]},
            {"role": "tool", "content": "5 degrees", "tool_call_id": "call_1"},
            _USER,
        ],
        "temperature": 0.7,
        "n": 1,
        "stream": True,
        "stream_options": {"include_usage": True},
    },
    "llama-index": {"messages": [_USER], "temperature": 0.1, "max_tokens": None, "stream": False, "logprobs": False},
    "litellm": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}]},
            {
                "role": "assistant",
                "content": "Yes?",
                "reasoning_content": "Hm.",
                "thinking_blocks": [],
                "provider_specific_fields": {"refusal": None},
                "images": [],
            },
            _USER,
        ],
        "user": "ann",
        "logit_bias": {},
        "tools": [],
        "seed": -1,
    },
    "open-webui": {
        "stream": True,
        "messages": [{"role": "system", "content": "Today is Monday."}, _USER],
        "max_tokens": -1,
        "seed": 0,
        "stop": ["\n\n\n"],
        "top_p": 0.9,
        "frequency_penalty": 0,
        "presence_penalty": 0,
        "stream_options": {"include_usage": True},
    },
    "librechat": {
        "messages": [_USER],
        "user": "65f0",
        "stream": True,
        "temperature": 1,
        "top_p": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "max_tokens": 100_000,
    },
    "ai-sdk": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
            {"role": "assistant", "content": "", "tool_calls": [_CALL]},
            {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": '{"degrees": 5}'}]},
            {"role": "user", "content": [{"type": "input_text", "text": "Where does the otter live?"}]},
        ],
        "response_format": {"type": "text"},
        "tool_choice": "auto",
        "modalities": ["text"],
        "prediction": {"type": "content", "content": "Rome"},
        "top_logprobs": 0,
    },
    "an agent behind its tool": {
        "messages": [
            _USER,
            {"role": "assistant", "content": "", "function_call": {"name": "look", "arguments": "{}"}},
            {"role": "function", "name": "look", "content": "nothing"},
        ]
    },
}
