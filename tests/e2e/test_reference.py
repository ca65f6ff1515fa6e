"""The audio a client gets over HTTP is the audio the reference package makes from the same
checkpoint.
"""

import io
import wave

import numpy as np
import openai

from serve_app.models.random_checkpoint import embedded_checkpoint
from tests.e2e.conftest import Server
from tests.golden.make_codes import FILE, SETS, WAVEFORM, weights_hash

# Samples are rounded to 16 bits on both sides, of sums taken in another order (float32, about
# 1e-5).
TOLERANCE_LSB = 2


def test_greedy_wav_from_the_openai_client_equals_the_reference(server: Server) -> None:
    name, index = WAVEFORM
    case = SETS[name][3][index]
    golden = np.load(FILE)
    assert str(golden[f"{name}/weights"]) == weights_hash(embedded_checkpoint())
    client = openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=120
    )
    answer = client.audio.speech.create(
        model="tts-1",
        voice=case["voice"],
        input=case["text"],
        response_format="wav",
        extra_body={"language": case["language"], "temperature": 0, "stream": False},
    )
    with wave.open(io.BytesIO(answer.read())) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    expected = golden["waveform"]
    assert samples.shape == expected.shape
    difference = np.abs(samples.astype(np.int32) - expected.astype(np.int32))
    worst = int(difference.argmax())
    assert difference.max() <= TOLERANCE_LSB, (
        f"{difference.max()} at sample {worst} (frame {worst // 1920}) of {len(samples)}"
    )
