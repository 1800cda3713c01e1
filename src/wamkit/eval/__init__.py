"""Evaluation: what a model imagines, what it does in closed loop, how sure the figures are, and the page of it all.

`visual` scores pictures, `distribution` sets of clips, `encoders` both by pretrained weights that the user names, `motion`
masks and paths; `probe` reads states from pictures and `physical` counts violations of physics in them. `branches`,
`action`, `execution`, `consistency`, `inverse` and `evaluator` ask whether pictures and actions belong together. `stats`
puts intervals on figures and tests on differences, `evidence` does so across tasks and training seeds and while episodes
still come in, `ranking` asks whether imagined success orders policies as real success does. `meta` asks of each metric
whether it ranks models whose rank is known (`sanity`). `pictures` turns frames into PNG and MP4, `charts` draws curves,
`report` writes the page. No module here changes the model that it scores.
"""
