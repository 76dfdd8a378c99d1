"""What the loaded models say about texts that are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from capt_local.decoding.answers import Answers, AnswerScore, Choosing, Chosen, as_utf8
from capt_local.decoding.evidence import Evidence
from capt_local.decoding.options import GenerateOptions
from capt_local.decoding.scoring import TextScore, opening, score_text
from capt_local.prompting.messages import refuse_nul
from capt_local.runtime.loaded import Asked, Loaded


class Scoring(Loaded):
    """Log-likelihoods of texts and answers."""

    def score(
        self,
        text: bytes,
        options: GenerateOptions | None = None,
        *,
        cancel: Callable[[], bool] | None = None,
    ) -> TextScore:
        """Log-likelihood of a text (UTF-8) from its beginning.

        Without a fixed alpha, its weights follow the text: each token is predicted with the
        weights that the text before it gives.

        Raises:
            Cancelled: `cancel`, which is asked at every token, said so.
            UsageError: the text holds a NUL byte.
        """
        refuse_nul(text, "The text")
        options = options or GenerateOptions()
        trio = self._begin(options, cancel, scoring=True)
        evidence = None
        if trio.mixes:
            evidence = Evidence(len(trio.powers), options.combine.forgetting)
        return score_text(trio, self._tokenizers, text, evidence, cancel)

    def score_answer(
        self,
        prompt: Asked,
        continuation: bytes,
        options: GenerateOptions | None = None,
        *,
        raw: bool = False,
        cancel: Callable[[], bool] | None = None,
        end: bool = False,
    ) -> AnswerScore:
        """Log-likelihood of a given answer after a prompt; see `Answers.scores`.

        A raw prompt may be empty: the answer is then a text of its own.
        """
        refuse_nul(continuation, "The answer")
        return self._answers(prompt, options, cancel, raw=raw).score(continuation, end=end)

    def score_answers(
        self,
        prompt: Asked,
        continuations: Sequence[bytes],
        options: GenerateOptions | None = None,
        *,
        raw: bool = False,
        cancel: Callable[[], bool] | None = None,
        end: bool = False,
    ) -> tuple[AnswerScore, ...]:
        """As `score_answer` for several answers; what they share is computed once."""
        for continuation in continuations:
            refuse_nul(continuation, "An answer")
        return self._answers(prompt, options, cancel, raw=raw).scores(continuations, end=end)

    def choose(
        self,
        prompt: Asked,
        choices: Sequence[str],
        options: GenerateOptions | None = None,
        *,
        raw: bool = False,
        cancel: Callable[[], bool] | None = None,
        how: Choosing = Choosing.LIKELIHOOD,
    ) -> Chosen:
        """Chooses one of several answers to a prompt; see `Answers.choose`."""
        for choice in choices:
            refuse_nul(choice, "A choice")
        answers = self._answers(prompt, options, cancel, raw=raw)
        return answers.choose([as_utf8(choice) for choice in choices], how)

    def _answers(
        self,
        asked: Asked,
        options: GenerateOptions | None,
        cancel: Callable[[], bool] | None,
        *,
        raw: bool,
    ) -> Answers:
        """What judges given answers to a prompt."""
        trio = self._begin(options or GenerateOptions(), cancel, scoring=True)
        if raw and not asked:
            prompts = opening(trio.models, self._tokenizers)
        else:
            prompts = self._prompts(trio, asked, raw=raw)
        return Answers(trio, self._tokenizers, prompts, cancel)
