"""Training of what is left free: U between frozen C and R (CURing, arXiv 2501.04211, section 4)."""
