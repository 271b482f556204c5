"""Single jobs on a study or a model: profile, score, export, import, bench, a floor of accuracy."""
