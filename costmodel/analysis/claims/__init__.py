"""Published claims, each derived again by the program under the claim's own set-up, and judged.

`files` reads claims, `setups` says what runs, `quantities` evaluates, `judging` compares. No verdict is typed in.

>>> from costmodel.analysis.claims import judged
>>> [row] = judged(["kimi-cache"])
>>> row["claimed"], round(row["predicted"], 1), row["verdict"]
(75.0, 73.9, 'reproduced')
"""

from costmodel.analysis.claims.files import Claim, claim_files, load_claims, read_claims
from costmodel.analysis.claims.judging import VERDICTS, judge, judged, tally, tally_by_basis

__all__ = [
    "VERDICTS",
    "Claim",
    "claim_files",
    "judge",
    "judged",
    "load_claims",
    "read_claims",
    "tally",
    "tally_by_basis",
]
