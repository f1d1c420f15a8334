"""The shared ground floor: entropy estimators, coefficient controllers and shaping rules.

The same code runs on exactly solvable toy MDPs (``toymdp``) and inside a GRPO run of a language model, on numpy and
torch arrays alike. Nothing here imports torch; a torch tensor brings its own namespace along (array-api-compat).

    entropy.py      support rules and the entropy over them, with closed-form gradients
    controllers.py  rules that move the entropy coefficient from measurement to measurement
    shaping.py      rules that weigh sampled tokens in the policy gradient and in the bonus
    methods.py      the methods of the field by name: a support, a controller, a shaping rule
    runs.py         a run directory: config, provenance, metrics; never overwritten
    files.py        files and folders that appear whole or not at all
    cli.py          what all command lines share; extras.py: the line that installs what is missing
"""

__version__ = "0.1.0"
