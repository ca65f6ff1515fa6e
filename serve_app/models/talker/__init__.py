"""The talker: Qwen3-TTS's autoregressive LM over code group 0, hosted by stock vLLM.

Everything that touches vLLM's internals is in this folder: `plugin` registers the model,
`hf_config` describes it,
`model` is the network, `state` the model-runner hooks (inputs from integer rows, sampling, codes
out), `cpu_kernels` what Model Runner V2 needs where Triton has no backend, `engine` the asyncio
face of an in-process engine core.
"""
