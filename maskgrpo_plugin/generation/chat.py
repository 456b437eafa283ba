"""A conversation in the terminal: each answer goes on from all turns before it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.generation.questions import Message, Question, user

HELP = "/reset forgets the conversation, /quit ends it"


@dataclass
class Chat:
    """A chat.

    Attributes:
        answer: completes a question, and returns the text; None where it makes images, of which each stands for itself.
        read: asks the person for a line; raises EOFError at its end.
        tell: shows a line that is none of the model's.
        picture: what the conversation is about.
        row: number of the next question.
        turns: the conversation so far.
    """

    answer: Callable[[Question], str | None]
    read: Callable[[], str]
    tell: Callable[[str], None]
    picture: Path | None = None
    row: int = 0
    turns: list[Message] = field(default_factory=list)

    def run(self) -> None:
        """Talk until `/quit`, or the end of the input.

        What a question cannot have (too long, say) is told, and the chat goes on without it. Ctrl-C ends an answer,
        which is then no part of the conversation.
        """
        self.tell(HELP)
        while True:
            try:
                line = self.read().strip()
            except EOFError:
                return
            if line == "/quit":
                return
            if line == "/reset":
                self.turns.clear()
                self.tell("the conversation is forgotten")
            elif line.startswith("/"):
                self.tell(f"there is no {line.split()[0]}; {HELP}")
            elif line:
                self._ask(line)

    def _ask(self, line: str) -> None:
        question = Question(self.row, (*self.turns, user(line)), self.picture, "chat")
        self.row += 1
        try:
            answer = self.answer(question)
        except OptionError as error:
            self.tell(str(error))
            return
        except KeyboardInterrupt:
            self.tell("the answer is left out")
            return
        if answer is not None:
            self.turns += [user(line), {"role": "assistant", "content": answer}]
