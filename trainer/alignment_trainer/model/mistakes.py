"""What is wrong with a model, told without the field that names it; whoever knows the field adds it. Never retried."""

from alignment_trainer.process.errors import UserError


class InvalidModelError(UserError):
    """The files are not what they say they are, or not whole."""

    def __init__(self, message: str) -> None:
        super().__init__("InvalidModel", message)


class UnsupportedModelError(UserError):
    """The model does something that this trainer would not reproduce, or has another head than its use needs."""

    def __init__(self, message: str) -> None:
        super().__init__("UnsupportedModel", message)
