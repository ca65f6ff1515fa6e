"""The parts that everything about voices shares, made once for an ingress."""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import get_args

from serve_app.audio.decoding import ClipLimits
from serve_app.config import IngressConfig, VoicesConfig
from serve_app.http.catalog import Catalog
from serve_app.http.speech.voice import Voicing
from serve_app.storage.objects import storage_at
from serve_app.voices.fetching import Fetcher
from serve_app.voices.library import Library
from serve_app.voices.making import EncoderOf, VoiceMaker
from serve_app.voices.values import Source


@dataclass(frozen=True, slots=True)
class Voices:
    """The library, what makes voices, and what reads of a request which one it wants."""

    library: Library
    maker: VoiceMaker
    voicing: Voicing
    config: VoicesConfig

    @classmethod
    def open(cls, config: IngressConfig, encoder_of: EncoderOf) -> "Voices":
        """
        Raises:
            ImportError, ValueError: nothing here reads the place of the library.
        """
        voices = config.voices
        storage = storage_at(voices.place, voices.storage_options)
        library = Library(storage, voices.max_voices, voices.max_voices_of_a_key)
        limits = ClipLimits(voices.min_s, voices.max_s, voices.max_upload_bytes)
        maker = VoiceMaker(library, encoder_of, limits, config.first_audio_timeout_s)
        fetcher = Fetcher(voices.allowed_hosts, voices.max_upload_bytes)
        return cls(library, maker, Voicing(library, maker, fetcher, voices), voices)

    def counter(self, catalog: Catalog) -> Callable[[], Awaitable[Mapping[str, int]]]:
        """Counts the voices that there are now: of the library by what they were made of, speakers
        of the models once each.
        """

        async def count() -> Mapping[str, int]:
            stored = Counter(voice.source for voice in (await self.library.now()).voices.values())
            speakers = {speaker for card in catalog.cards for speaker in card.voices}
            return {**{kind: stored[kind] for kind in get_args(Source)}, "speaker": len(speakers)}

        return count
