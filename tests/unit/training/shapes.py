"""A voice of a few thousand weights, for tests."""

from training.shape import Transformer, VoiceShape

TINY = VoiceShape(
    entry_dim=8,
    text_tokens=320,
    text_hidden=32,
    talker=Transformer(48, 64, 2, 2, 1, 24),
    predictor=Transformer(32, 48, 1, 2, 1, 16),
    decoder=Transformer(32, 48, 1, 2, 2, 16),
    latent=32,
    decoder_dim=32,
    encoder=Transformer(32, 48, 1, 2, 2, 16),
    encoder_filters=4,
)
TEXTS = ("Good morning to everyone.", "What time is it now?", "The train leaves at 12:10.")
