"""The talker: Qwen3-TTS's autoregressive LM over code group 0, hosted by stock vLLM.

`engine` is its asyncio face, `prompt` lays a request out and `checks` keeps what cannot run from
the engine; `engine_thread` steps the engine, `outbox` brings its items to the event loops and
`progress` notices when it hangs; `runtime` and `slots`, which `arrivals` fills, are what the
engine's owner and vLLM's hooks share. Everything that a release of vLLM can break is in the folder
`vllm`.
"""
