"""Cox's partial likelihood: which of those who were still at risk had the event, time after time.

Cox, "Regression Models and Life-Tables", Journal of the Royal Statistical Society B 1972,
doi:10.1111/j.2517-6161.1972.tb00899.x; ties by Efron, "The Efficiency of Cox's Likelihood Function for Censored Data",
JASA 1977, doi:10.1080/01621459.1977.10480613. With log risks r, the patients R_s who are at risk at a time s, and the
d_s of them, D_s, who have the event then,

    L = 1 / N sum over s of ( sum over l = 0 .. d_s - 1 of log(sum over R_s of exp(r) - l / d_s sum over D_s of exp(r))
                              - sum over D_s of r )

over a batch of N patients, who are a risk set of their own. It is divided by patients, and not by events, so that sites
that count by their patients add up to the partial likelihood of Cox's model with a stratum for each site. The same
number added to every risk changes nothing: a model's intercept stays as it was.
"""

import torch
from torch import Tensor


def cox_loss(risks: Tensor, y: Tensor) -> Tensor:
    """Return the loss `()`; 0 where a batch has no event.

    Args:
        risks: log risks `(N,)`.
        y: times, with a minus sign where they are censored `(N,)`.
    """
    exact, times, events = risks.double(), y.abs(), ~torch.signbit(y)
    highest = exact.detach().max()
    sizes = (exact - highest).exp()
    known, place = torch.unique(times, return_inverse=True)
    none = torch.zeros(len(known), dtype=exact.dtype, device=exact.device)
    at_risk = none.index_add(0, place, sizes).flip(0).cumsum(0).flip(0)
    tied = none.index_add(0, place[events], sizes[events])
    own = place[events].sort().values
    count = torch.bincount(own, minlength=len(known))
    rank = torch.arange(len(own), device=own.device) - (count.cumsum(0) - count)[own]
    part = rank.double() / count[own].double()
    logs = (at_risk[own] - part * tied[own]).log().sum() + highest * len(own)
    return ((logs - exact[events].sum()) / len(y)).to(risks.dtype)
