"""From outputs to findings: how far, compared with what, allowed why, and what it means."""
