"""Name and shape of each tensor that serving needs, as they follow from the facts alone."""

from serve_app.models.checkpoint.spec import (
    CodePredictorSpec,
    SpeechDecoderSpec,
    TalkerSpec,
    TransformerSpec,
)

Shapes = dict[str, tuple[int, ...]]


def talker_shapes(spec: TalkerSpec) -> Shapes:
    """Name and shape of each tensor of the talker."""
    hidden, text_hidden = spec.transformer.hidden_size, spec.text_hidden_size
    return {
        "talker.model.text_embedding.weight": (spec.text_vocab_size, text_hidden),
        "talker.model.codec_embedding.weight": (spec.vocab_size, hidden),
        "talker.text_projection.linear_fc1.weight": (text_hidden, text_hidden),
        "talker.text_projection.linear_fc1.bias": (text_hidden,),
        "talker.text_projection.linear_fc2.weight": (hidden, text_hidden),
        "talker.text_projection.linear_fc2.bias": (hidden,),
        "talker.codec_head.weight": (spec.vocab_size, hidden),
        **_transformer_shapes("talker.model", spec.transformer, qk_norm=True),
    }


def code_predictor_shapes(spec: CodePredictorSpec) -> Shapes:
    """Name and shape of each tensor of the code predictor; its tables are as wide as the talker."""
    hidden = spec.transformer.hidden_size
    shapes: Shapes = _transformer_shapes(
        "talker.code_predictor.model", spec.transformer, qk_norm=True
    )
    for i in range(spec.num_code_groups - 1):
        table = f"talker.code_predictor.model.codec_embedding.{i}.weight"
        shapes[table] = (spec.vocab_size, spec.talker_hidden_size)
        shapes[f"talker.code_predictor.lm_head.{i}.weight"] = (spec.vocab_size, hidden)
    if spec.has_projection:
        projection = "talker.code_predictor.small_to_mtp_projection"
        shapes[f"{projection}.weight"] = (hidden, spec.talker_hidden_size)
        shapes[f"{projection}.bias"] = (hidden,)
    return shapes


def speech_decoder_shapes(spec: SpeechDecoderSpec) -> Shapes:
    """Name and shape of each tensor of the speech decoder."""
    hidden, latent = spec.transformer.hidden_size, spec.latent_dim
    shapes: Shapes = {}
    for part, codebooks in (("rvq_first", 1), ("rvq_rest", spec.num_code_groups - 1)):
        quantizer = f"decoder.quantizer.{part}"
        shapes[f"{quantizer}.input_proj.weight"] = (spec.vq_dim, spec.codebook_dim, 1)
        shapes[f"{quantizer}.output_proj.weight"] = (spec.codebook_dim, spec.vq_dim, 1)
        for i in range(codebooks):
            codebook = f"{quantizer}.vq.layers.{i}._codebook"
            shapes[f"{codebook}.cluster_usage"] = (spec.codebook_size,)
            shapes[f"{codebook}.embedding_sum"] = (spec.codebook_size, spec.vq_dim)
    shapes |= _affine("decoder.pre_conv.conv", latent, spec.codebook_dim, 3)
    shapes |= _affine("decoder.pre_transformer.input_proj", hidden, latent)
    shapes |= _affine("decoder.pre_transformer.output_proj", latent, hidden)
    shapes |= _transformer_shapes("decoder.pre_transformer", spec.transformer, qk_norm=False)
    for i in range(spec.transformer.num_layers):
        for scale in ("self_attn_layer_scale", "mlp_layer_scale"):
            shapes[f"decoder.pre_transformer.layers.{i}.{scale}.scale"] = (hidden,)
    for i, ratio in enumerate(spec.upsampling_ratios):
        shapes |= _transposed(f"decoder.upsample.{i}.0.conv", latent, latent, ratio)
        block = f"decoder.upsample.{i}.1"
        shapes |= _affine(f"{block}.dwconv.conv", latent, 1, 7)
        shapes |= _affine(f"{block}.norm", latent)
        shapes |= _affine(f"{block}.pwconv1", 4 * latent, latent)
        shapes |= _affine(f"{block}.pwconv2", latent, 4 * latent)
        shapes[f"{block}.gamma"] = (latent,)
    return shapes | _vocoder_shapes(spec)


def _vocoder_shapes(spec: SpeechDecoderSpec) -> Shapes:
    channels = spec.decoder_dim
    shapes = _affine("decoder.decoder.0.conv", channels, spec.latent_dim, 7)
    for i, rate in enumerate(spec.upsample_rates, start=1):
        block = f"decoder.decoder.{i}.block"
        shapes |= _snake(f"{block}.0", channels)
        shapes |= _transposed(f"{block}.1.conv", channels, channels // 2, 2 * rate)
        channels //= 2
        for unit in (2, 3, 4):
            shapes |= _snake(f"{block}.{unit}.act1", channels)
            shapes |= _affine(f"{block}.{unit}.conv1.conv", channels, channels, 7)
            shapes |= _snake(f"{block}.{unit}.act2", channels)
            shapes |= _affine(f"{block}.{unit}.conv2.conv", channels, channels, 1)
    last = len(spec.upsample_rates) + 1
    shapes |= _snake(f"decoder.decoder.{last}", channels)
    return shapes | _affine(f"decoder.decoder.{last + 1}.conv", 1, channels, 7)


def _transformer_shapes(prefix: str, spec: TransformerSpec, *, qk_norm: bool) -> Shapes:
    hidden, inner = spec.hidden_size, spec.intermediate_size
    query, key = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    shapes: Shapes = {f"{prefix}.norm.weight": (hidden,)}
    for i in range(spec.num_layers):
        layer = f"{prefix}.layers.{i}"
        shapes[f"{layer}.input_layernorm.weight"] = (hidden,)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
        shapes[f"{layer}.self_attn.q_proj.weight"] = (query, hidden)
        shapes[f"{layer}.self_attn.k_proj.weight"] = (key, hidden)
        shapes[f"{layer}.self_attn.v_proj.weight"] = (key, hidden)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (hidden, query)
        if qk_norm:
            shapes[f"{layer}.self_attn.q_norm.weight"] = (spec.head_dim,)
            shapes[f"{layer}.self_attn.k_norm.weight"] = (spec.head_dim,)
        shapes[f"{layer}.mlp.gate_proj.weight"] = (inner, hidden)
        shapes[f"{layer}.mlp.up_proj.weight"] = (inner, hidden)
        shapes[f"{layer}.mlp.down_proj.weight"] = (hidden, inner)
    return shapes


def _affine(prefix: str, out: int, *rest: int) -> Shapes:
    return {f"{prefix}.weight": (out, *rest), f"{prefix}.bias": (out,)}


def _transposed(prefix: str, channels_in: int, channels_out: int, kernel: int) -> Shapes:
    # ConvTranspose1d stores [in, out, kernel], the one weight whose first axis is not the output.
    return {
        f"{prefix}.weight": (channels_in, channels_out, kernel),
        f"{prefix}.bias": (channels_out,),
    }


def _snake(prefix: str, channels: int) -> Shapes:
    return {f"{prefix}.alpha": (channels,), f"{prefix}.beta": (channels,)}
