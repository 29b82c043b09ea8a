"""Does a feature help a ranker? The same ranker with and without it, ranking everything, with controls.

    Dataset -> windows -> base columns + feature sets -> LightGBM or DeepFM -> full ranking -> intervals, JSON, a page

`windows` says what was known when; `features`, `sets` and `tables` what a ranker may get; `experiment` trains and
measures; `summary`, `report` and `page` tell. Nothing here imports feast; only `deepfm` imports torch.
"""
