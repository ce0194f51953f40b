"""A token with its log-probability: what generators give that are asked for them. It needs no other module."""


class ScoredToken(int):
    """A token id that carries its log-probability, and the likeliest ids with theirs, likeliest first.

    They are natural logarithms of the model's own distribution: the softmax of the logits before any processor, so
    they do not depend on the options, sum to one over the vocabulary, and may name ids that are never generated.
    """

    logprob: float
    likeliest: tuple[tuple[int, float], ...]
