"""Evaluation of a run: figures with intervals, and the page that shows them. No module here changes the model.

* `metrics`: functions of arrays, without a model or an environment.
* `probes`: small networks that read states, masks or actions from frames.
* `suites`: evaluations of a model in an environment; each makes tables for the page.
* `report`: pages, and tables as text.
* `metatest`: reference models of known rank, and what each metric must make of them.
"""
