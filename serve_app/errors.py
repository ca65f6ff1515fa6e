"""Everything the product raises on purpose.

    SpeechError
      InvalidRequest      400  the caller can fix it
        NotFound          404  what it names does not exist
          UnknownModel    404  no such model is served
        Conflict          409  not in the state that the thing is in
      NotAuthenticated    401  there is no valid API key
      NotAllowed          403  not for this caller
      Overloaded          429  try later; carries retry_after_s
        Full              429  whoever else comes now is refused as well
        RateLimited       429  a limit of the caller's key, not of the server
      StorageFull         507  no room to keep what the request brings or makes
      StageUnavailable    503  starting, draining, unreachable, silent for too long
        StageLost         503  its process ended while it worked on the request
        ModelStarting     503  the model that is asked for is not ready yet
        StorageAway       503  what is kept can be neither read nor written
        ServerDraining    503  the server is to end: it begins nothing new
      StageFailed         500  a bug or a device fault
        RepeatedFailure   500  the request broke several replicas

    CheckpointError            a checkpoint on disk is unusable: names the file and the reason; at
                               start only

All arguments go to `super().__init__`, so each error survives pickling between replicas.
"""


class SpeechError(Exception):
    """Base of the errors that a client may see."""


class InvalidRequest(SpeechError):
    """The request cannot be served as it is; `param` names the field (OpenAI's error shape)."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message, param, code)
        self.message = message
        self.param = param
        self.code = code

    def __str__(self) -> str:
        return self.message


class NotFound(InvalidRequest):
    """What the request names does not exist."""


class Conflict(InvalidRequest):
    """What the request wants is not possible in the present state of what it names."""


class UnknownModel(NotFound):
    """The request names a model that is not served here."""


class Overloaded(SpeechError):
    """No capacity now; the same request may pass after `retry_after_s` seconds.

    `stage` is the `types.Stage` that has none; None: it is not one of the stages.
    """

    def __init__(self, message: str, retry_after_s: float = 1.0, stage: str | None = None) -> None:
        super().__init__(message, retry_after_s, stage)
        self.message = message
        self.retry_after_s = retry_after_s
        self.stage = stage

    def __str__(self) -> str:
        return self.message


class Full(Overloaded):
    """Nobody could be let in, whatever the caller's priority."""


class RateLimited(Overloaded):
    """The caller's key has used up what it may have for now."""


class NotAuthenticated(SpeechError):
    """The caller has to show a valid API key."""


class NotAllowed(SpeechError):
    """The caller may not have this, whatever key it shows."""


class StorageFull(SpeechError):
    """There is no room left to keep what a request brings, or what is made for it."""


class StageUnavailable(SpeechError):
    """A stage cannot serve at present; another attempt may reach a healthy replica."""


class StageLost(StageUnavailable):
    """The process of a stage ended while it worked on a request, which may be the reason."""


class ModelStarting(StageUnavailable):
    """The model that a request needs is configured, and has not said yet what it can do."""


class StorageAway(StageUnavailable):
    """What the server keeps can be neither read nor written at present."""


class ServerDraining(StageUnavailable):
    """The server is to end: it finishes what it has, and no attempt here is of use."""


class StageFailed(SpeechError):
    """A stage broke while it worked on a request."""


class RepeatedFailure(StageFailed):
    """A request broke several replicas: it is not tried at any other, at no hop."""


class CheckpointError(Exception):
    """A checkpoint cannot be used: `file` and `reason` say why."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(file, reason)
        self.file = file
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"
