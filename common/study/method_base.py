"""What the program has to know of every method, built in or of one's own."""

from typing import ClassVar

from consilium.common.study.record import Record


class MethodSettings(Record):
    """Base of every method's settings; declares the facts on a method that the rest of the program needs."""

    plain_sgd: ClassVar[bool] = False
    """It is defined for SGD without momentum and weight decay."""
    plain_steps: ClassVar[bool] = True
    """The shared arrays move by the study's optimiser alone, so that `train.effective_steps` holds."""
    matched: ClassVar[bool] = False
    """It is one half of an algorithm, and the strategy of the same name is the other, whose memory relies on the state
    that the site keeps: a site that has lost it cannot go on in the run."""
    comparable: ClassVar[bool] = False
    """What sites send is trained from the same weights and beside no personal part, so that the directions of honest
    updates can be compared (`defence.against`).
    """
    own_strategy: ClassVar[str | None] = None
    """The strategy with which its paper defines it."""
    shares_nothing: ClassVar[bool] = False
    """Every site trains alone; there is nothing to aggregate."""
    local_batch_norm: ClassVar[bool] = False
    """It is defined as keeping BatchNorm at the site."""
    of_classes: ClassVar[str | None] = None
    """In words, the step that needs classes and cannot be done with a label that is a number; None: there is none."""
    tunes_served: ClassVar[bool] = True
    """What a site serves is also trained by what never leaves it: a private study is not told how well it does, since
    no noise hides the patients whom that training saw.
    """
    balances: ClassVar[bool] = False
    """It balances the classes in its own loss."""
    linear_head: ClassVar[str | None] = None
    """In words, the step that holds for a head of one linear layer alone; None: a head may have several."""
    not_private: ClassVar[str | None] = "does not say that all its training may be private (not_private = None)"
    """In words, why it cannot be combined with `privacy.examples`; None: of the examples, what it sends in any round
    depends on nothing but the training that gets the noise."""
