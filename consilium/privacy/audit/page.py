"""The findings of an audit as one page that opens offline."""

from consilium.findings.pages import render
from consilium.privacy.audit.audit import Audit
from consilium.privacy.audit.rows import ROUND_TITLES, SITE_TITLES, chain_sentence, code_of, round_cells, site_cells


def render_audit(audit: Audit) -> str:
    """Return the page: no script, no request, light and dark."""
    return render(
        "consilium.privacy",
        "audit.html.j2",
        {
            "audit": audit,
            "chain": chain_sentence(audit),
            "code": code_of(audit),
            "round_titles": ROUND_TITLES,
            "rounds": round_cells(audit),
            "site_titles": SITE_TITLES,
            "sites": site_cells(audit),
        },
    )
