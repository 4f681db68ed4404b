"""Mistakes in configs and flags, and the words that the message of each must contain. Written before the checks."""

from typing import NamedTuple

RESEARCH = """
from typing import Literal

import keras
import numpy as np

from trainer import Trainer, configurable
from trainer.data import from_arrays


class MyTrainer(Trainer):
    def __init__(self, margin=1.0, **kwargs):
        super().__init__(**kwargs)


class Wide(keras.layers.Dense):
    def __init__(self, times=2, **kwargs):
        super().__init__(**kwargs)


@configurable
def network(width: int = 4, bias=True, shape: Literal["flat", "deep"] = "flat", sizes: list[int] | None = None):
    \"\"\"A model.

    Args:
      width: units of the hidden layer.
    \"\"\"
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])


@configurable
def train_data(batch_size=8):
    return from_arrays((np.zeros([16, 3], "float32"), np.zeros([16, 1], "float32")), batch_size)


@configurable
def eval_data():
    return from_arrays((np.zeros([16, 3], "float32"), np.zeros([16, 1], "float32")), 8, repeat=False)


class Draw:
    def __init__(self, every=1):
        self.every = every

    def __call__(self, trainer, step, metrics):
        pass


@configurable
def hook(trainer, step, metrics):
    pass
"""

BROKEN = "import keras\n\n\ndef table():\n    return {}['missing']\n\n\nTABLE = table()\n"
LAZY = "def __getattr__(name):\n    if name == 'there':\n        return dict\n    raise AttributeError(name)\n"

WHOLE = """
import research
run.trainer = @Trainer
run.train_data = @research.train_data
run.train_steps = 4
Trainer.model = @research.network()
Trainer.loss = 'mse'
"""


class Mistake(NamedTuple):
    """Line 1 of a.gin includes a whole config; `gin` begins at line 2.

    Attributes:
        name: what is wrong.
        gin: the lines with the mistake.
        words: what the message must contain.
        flags: further flags.
        files: further files of the folder, name -> text.
        whole: the config that a.gin includes.
    """

    name: str
    gin: str
    words: tuple
    flags: tuple = ()
    files: dict = {}
    whole: str = WHOLE


GROUPS = (
    "Trainer.optimizers = [@discriminator/OptimizerGroup()]\n"
    "discriminator/OptimizerGroup.optimizer = @discriminator/Adam()\n"
)

# Found without TensorFlow, by files and syntax trees alone.
BEFORE_TENSORFLOW = [
    # Names.
    Mistake("configurable", "Adm.epsilon = 1.0", ("a.gin:2", "`Adm` is unknown", "`Adam`")),
    Mistake("configurable of ours", "Traner.guard = 'off'", ("a.gin:2", "`Traner`", "`Trainer`")),
    Mistake("configurable, nothing near", "Zzyzx.x = 1", ("a.gin:2", "`Zzyzx` is unknown", "mport")),
    Mistake("configurable of a module", "research.netwrk.width = 1",
        ("a.gin:2", "`research` has no `netwrk`", "`network`")),
    Mistake("decorated name", "netwrk.width = 1", ("a.gin:2", "`netwrk`", "`network`")),
    Mistake("ambiguous name", "Trainer.metrics = [@Hinge()]",
        ("a.gin:2", "`keras.losses.Hinge`", "`keras.metrics.Hinge`", "full name")),
    Mistake("reference", "Trainer.optimizers = @Adm()", ("a.gin:2", "`Adm`", "`Adam`")),
    Mistake("reference in a list", "run.hooks = [\n  @research.Draw(),\n  @research.Drw(),\n]",
        ("a.gin:4", "`Drw`", "`Draw`")),
    Mistake("module of ours", "import trainer.hoks", ("a.gin:2", "`trainer.hoks`", "`hooks`")),
    Mistake("name of a module of Keras", "import keras\nTrainer.loss = @keras.losses.Hubr()",
        ("a.gin:3", "`keras.losses` has no `Hubr`", "`Huber`")),
    # Parameters.
    Mistake("parameter of run", "run.train_step = 5",
        ("a.gin:2", "no parameter `train_step`", "`train_steps`", "`checkpoint_interval`")),
    Mistake("parameter of Keras", "Adam.learning_rat = 1e-3",
        ("a.gin:2", "`learning_rat`", "`learning_rate`", "`beta_1`")),
    Mistake("parameter, **kwargs of Keras", "Dense.unts = 3", ("a.gin:2", "`unts`", "`units`", "`kernel_initializer`")),
    Mistake("parameter, **kwargs of ours", "LAMB.weight_decy = 0.1", ("a.gin:2", "`weight_decy`", "`weight_decay`")),
    Mistake("parameter, **kwargs of a subclass", "research.MyTrainer.guards = 'off'",
        ("a.gin:2", "`guards`", "`guard`", "`margin`")),
    Mistake("parameter, **kwargs of a user's layer", "research.Wide.units_ = 3",
        ("a.gin:2", "`units_`", "`units`", "`times`")),
    Mistake("parameter of a user's function", "research.network.widht = 3",
        ("a.gin:2", "`widht`", "`width`", "`bias`")),
    Mistake("parameter, nothing near", "EMA.momentum = 0.9", ("a.gin:2", "no parameter `momentum`", "`decay`")),
    # Macros, scopes, cycles.
    Mistake("macro", "STEPS = 3\nrun.eval_interval = %STEP", ("a.gin:3", "`%STEP` is not defined", "`STEPS`")),
    Mistake("macro in a list", "run.hooks = [\n  %A,\n]", ("a.gin:3", "`%A` is not defined")),
    Mistake("scope", GROUPS + "discriminatr/Adam.learning_rate = 1e-3",
        ("a.gin:4", "scope `discriminatr`", "`discriminator`")),
    Mistake("scope that nothing opens", "Trainer.optimizers = @Adam()\nfast/Adam.learning_rate = 1e-3",
        ("a.gin:3", "scope `fast`", "`@fast/Adam()`")),
    Mistake("cycle of macros", "A = %B\nB = [%A]\nrun.hooks = %A", ("a.gin:2", "`%A`", "`%B`", "itself")),
    Mistake("macro of itself", "A = %A\nrun.hooks = %A", ("a.gin:2", "`%A`", "itself")),
    Mistake("cycle of references",
        "Trainer.optimizers = @OptimizerGroup()\nOptimizerGroup.optimizer = @OptimizerGroup()",
        ("a.gin:3", "`@OptimizerGroup()`", "itself")),
    # Modules, includes, files.
    Mistake("module", "import reserch", ("a.gin:2", "no module `reserch`", "`research`")),
    Mistake("module of a file that is no package", "import research.layers",
        ("a.gin:2", "no module `research.layers`")),
    Mistake("name of a from import", "from research import netwrk", ("a.gin:2", "`netwrk`", "`network`")),
    Mistake("include", "include 'bas.gin'", ("a.gin:2", "`bas.gin` does not exist", "`base.gin`")),
    Mistake("include without quotes", "include base.gin", ("a.gin:2", "include 'base.gin'")),
    Mistake("gin file", "", ("`b.gin` does not exist", "a.gin"), flags=("--gin_file=b.gin",)),
    Mistake("gin file that is a folder", "", ("`folder` is a folder",), flags=("--gin_file=folder",),
        files={"folder/x.gin": ""}),
    Mistake("a module with a syntax error", "import broken", ("a.gin:2", "broken.py:2: ", "def f(:"),
        files={"broken.py": "import keras\ndef f(:\n"}),
    Mistake("a package that hides ours", "", ("`losses`", "hides", "my_losses"), files={"losses/__init__.py": ""}),
    # Flags.
    Mistake("strategy", "", ("strategy", "'mirrord'", "`mirrored`"), flags=("--strategy=mirrord",)),
    Mistake("strategy in gin", "run.strategy = 'mirrord'", ("a.gin:2", "`run.strategy`", "`mirrored`")),
    Mistake("mode", "", ("mode", "trian", "`train`"), flags=("--mode=trian",)),
    Mistake("mode in gin", "run.mode = 'evaluate'", ("a.gin:2", "`run.mode`", "'evaluate'", "train_and_eval")),
    Mistake("resume in gin", "run.resume = 'allways'", ("a.gin:2", "`run.resume`", "auto", "never", "must")),
    Mistake("a flag", "", ("gin_fil", "gin_file"), flags=("--gin_fil=a.gin",)),
    Mistake("a file without its flag", "", ("--gin_file=a.gin",), flags=("a.gin",)),
    Mistake("a parameter that the shell split", "", ("separate words", "--gin_param='run.train_steps = 5'"),
        flags=("--gin_param", "run.train_steps", "=", "5")),
    Mistake("quotes that the shell took", "", ("skip", "quotes", "--gin_param=\"Trainer.guard='skip'\""),
        flags=("--gin_param=Trainer.guard=skip",)),
    Mistake("quotes in a list that the shell took", "", ("`mae`", "quotes", "['mae']"),
        flags=("--gin_param=Trainer.metrics=[mae]",)),
    Mistake("quotes of a path that the shell took", "", ("`/data/x`", "--gin_param=\"run.precision='/data/x'\""),
        flags=("--gin_param=run.precision=/data/x",)),
    Mistake("quotes of all words that the shell took", "", ("={'a': @Adam(), 'b': [1, 'mae', None]}\"",),
        flags=("--gin_param=Trainer.metrics={a: @Adam(), b: [1, mae, None]}",)),
    Mistake("T5X's spelling with spaces", "", ("`run.seed`", "separate words", "--gin_param='run.seed = 1'"),
        flags=("--gin.run.seed", "=", "1")),
    Mistake("T5X's spelling without equals sign", "", ("--gin_param='run.seed = 1'",), flags=("--gin.run.seed", "1")),
    Mistake("a binding without its flag", "", ("write --gin_param=run.seed=1",), flags=("run.seed=1",)),
    Mistake("a parameter as a flag", "", ("'train_steps'", "--gin.run.train_steps=VALUE"), flags=("--train_steps=5",)),
    Mistake("a value for a negated flag", "", ("--nodry_run=3",), flags=("--nodry_run=3",)),
    Mistake("a search path", "", ("--gin_search_paths", "no folder `nowhere`"), flags=("--gin_search_paths=nowhere",)),
    Mistake("a shipped file in a folder", "", ("Did you mean `digits.gin`",), flags=("--gin_file=configs/digits.gin",)),
    Mistake("a remote folder", "", ("--model_dir", "gs:// is not supported"), flags=("--model_dir=gs://b/x",)),
    Mistake("empty initial weights", "", ("`init_from`", "shell variable"), flags=("--init_from=",)),
    Mistake("an empty folder", "", ("--model_dir", "shell variable"), flags=("--model_dir=",)),
    Mistake("T5X's spelling", "", ("run.train_step=5", "`train_steps`"), flags=("--gin.run.train_step=5",)),
    Mistake("a parameter without a dot", "", ("`train_steps` has no dot", "`run.train_steps = ...`"),
        flags=("--gin_param=train_steps = 5",)),
    # Statements.
    Mistake("a line without a dot", "train_steps = 5",
        ("a.gin:2", "`train_steps` has no dot", "`run.train_steps = ...`")),
    Mistake("twice in a file", "run.seed = 1\nrun.seed = 2", ("a.gin:3", "`run.seed` is bound already at a.gin:2")),
    Mistake("twice under two names",
        "SGD.momentum = 0.5\nkeras.optimizers.SGD.momentum = 0.9\nTrainer.optimizers = @SGD()",
        ("a.gin:3", "bound already at a.gin:2")),
    Mistake("a string without quotes", "Trainer.loss = mse", ("a.gin:2", "`mse` is not a value", "'mse'")),
    Mistake("true", "research.network.bias = true", ("a.gin:2", "`true`", "True")),
    Mistake("null", "run.eval_interval = null", ("a.gin:2", "`null`", "None")),
    Mistake("an expression", "run.train_steps = 2 * 64", ("a.gin:2", "expression", "128")),
    Mistake("an expression of a macro", "STEPS = 3\nrun.train_steps = %STEPS + 1", ("a.gin:3", "expression", "macro")),
    Mistake("a call with arguments", "Trainer.optimizers = @Adam(0.1)", ("a.gin:2", "`Adam.PARAMETER = ...`")),
    Mistake("a function without @", "Trainer.model = research.network()", ("a.gin:2", "@research.network()")),
    Mistake("two statements in a line", "run.seed = 1; run.train_steps = 5", ("a.gin:2", "one binding a line")),
    Mistake("a colon", "run.train_steps: 5", ("a.gin:2", "one `=`")),
    Mistake("a path without quotes", "run.precision = /data/x", ("a.gin:2", "`/data/x` is not a value", "quotes")),
    Mistake("calls in a list", "Trainer.optimizers = [Adam(), SGD()]", ("a.gin:2", "`@Adam()`")),
    Mistake("no equals sign", "run.train_steps 5", ("a.gin:2", "`=`")),
    Mistake("a bracket that is not closed", "run.hooks = [\nrun.seed = 1", ("a.gin:2", "bracket", "not closed")),
    Mistake("a string that is not closed", "Trainer.guard = 'off", ("a.gin:2", "not closed")),
    # Values.
    Mistake("a word for a count", "run.train_steps = 'many'",
        ("a.gin:2", "`run.train_steps` must be an int >= 1", "'many'")),
    Mistake("a fraction for a count", "run.eval_interval = 1.5",
        ("a.gin:2", "`run.eval_interval` must be an int >= 1", "1.5")),
    Mistake("zero for a count", "Trainer.micro_batches = 0", ("a.gin:2", "`Trainer.micro_batches`", ">= 1", "got 0")),
    Mistake("a seed below zero", "run.seed = -1", ("a.gin:2", "`run.seed`", ">= 0", "-1")),
    Mistake("a choice", "Trainer.guard = 'ship'", ("a.gin:2", "`Trainer.guard`", "'ship'", "`skip`")),
    Mistake("a string for a number", "Adam.learning_rate = '1e-3'",
        ("a.gin:2", "`Adam.learning_rate` must be a number", "'1e-3'")),
    Mistake("a string for a bool", "research.network.bias = 'no'",
        ("a.gin:2", "`research.network.bias` must be True or False", "'no'")),
    Mistake("against an annotation", "research.network.width = 'wide'",
        ("a.gin:2", "`research.network.width` must be an int", "'wide'")),
    Mistake("against a Literal", "research.network.shape = 'depp'", ("a.gin:2", "'depp'", "`deep`")),
    Mistake("against the items of a list", "research.network.sizes = [4, 'x']",
        ("a.gin:2", "`research.network.sizes`", "int", "'x'")),
    Mistake("a macro with a wrong value", "W = 'wide'\nresearch.network.width = %W",
        ("a.gin:3", "must be an int", "'wide'")),
    Mistake("outside of a range", "Trainer.averages = @EMA()\nEMA.decay = 1.5", ("a.gin:3", "`EMA.decay`", "1.5")),
    # Missing values.
    Mistake("required macro", "STEPS = %gin.REQUIRED\nrun.train_steps = %STEPS",
        ("a.gin:2", "`STEPS` is required", "--gin_param 'STEPS = ...'")),
    Mistake("required parameter, with its meaning", "run.train_data = %gin.REQUIRED",
        ("a.gin:2", "`run.train_data` is required", "a source or a tf.data.Dataset")),
    Mistake("run without data, with its meaning", "",
        ("`run.train_data` has no value", "a source or a tf.data.Dataset"),
        whole=WHOLE.replace("run.train_data = @research.train_data\n", "")),
    Mistake("an argument of a call", "Trainer.model = @Dense()",
        ("a.gin:2", "`@Dense()` needs `units`", "dimensionality", "`Dense.units = ...`")),
    # Called or not.
    Mistake("a model that is not called", "Trainer.model = @research.network",
        ("a.gin:2", "`Trainer.model`", "`@research.network()`")),
    Mistake("an optimizer that is not called", "Trainer.optimizers = [@Adam]",
        ("a.gin:2", "`Trainer.optimizers`", "`@Adam()`")),
    Mistake("a transform that is not called",
        GROUPS + "OptimizerGroup.transforms = [@clip_by_global_norm]\nclip_by_global_norm.clip_norm = 1.0",
        ("a.gin:4", "`OptimizerGroup.transforms`", "`@clip_by_global_norm()`")),
    Mistake("a hook that is not called", "run.hooks = [@research.Draw]",
        ("a.gin:2", "`run.hooks`", "`@research.Draw()`")),
    Mistake("a loss that is not called", "Trainer.loss = @keras.losses.Huber",
        ("a.gin:2", "`Trainer.loss`", "`@keras.losses.Huber()`")),
    Mistake("checkpoints that are not called", "run.checkpoints = @Checkpoints",
        ("a.gin:2", "`run.checkpoints`", "`@Checkpoints()`")),
    Mistake("data that are called", "run.train_data = @research.train_data()",
        ("a.gin:2", "`run.train_data`", "`@research.train_data`", "uncalled")),
    Mistake("named data that are called", "run.eval_data = {'a': @research.eval_data()}",
        ("a.gin:2", "`run.eval_data`", "`@research.eval_data`", "uncalled")),
    Mistake("a trainer in quotes", "run.trainer = 'Trainer'",
        ("a.gin:2", "`run.trainer`", "`@f`", "'Trainer'")),
    Mistake("a trainer that is called", "run.trainer = @research.MyTrainer()",
        ("a.gin:2", "`run.trainer`", "`@research.MyTrainer`", "uncalled")),
    Mistake("a macro that is called wrongly", "MODEL = @research.network\nTrainer.model = %MODEL",
        ("a.gin:3", "`Trainer.model`", "`@research.network()`")),
]  # fmt: skip

# What only an import or a run can tell.
AFTER_TENSORFLOW = [
    Mistake("a module whose import fails", "import broken", ("KeyError", "broken.py:5", "broken.py:8"),
        files={"broken.py": BROKEN}),
    Mistake("a module that imports a broken one", "import broken", ("SyntaxError", "worse.py:2", "broken.py:1"),
        files={"broken.py": "import worse\n", "worse.py": "import keras\ndef f(:\n"}),
    Mistake("a module that imports what is not there", "import broken", ("No module named 'nowhere'", "broken.py:1"),
        files={"broken.py": "import nowhere\n"}),
    Mistake("a name of a module that computes its names", "import lazy\nrun.hooks = [@lazy.their()]",
        ("a.gin:3", "`lazy` has no `their`"), files={"lazy.py": LAZY}),
    Mistake("a binding that nothing used", "Trainer.optimizers = 'sgd'\nAdam.epsilon = 1.0",
        ("a.gin:3", "`Adam.epsilon` is never used")),
    Mistake("the name of an optimizer", "Trainer.optimizers = 'adm'",
        ("`optimizer`", "'adm'", "'adam'", "a.gin:2")),
    Mistake("a value that a constructor refuses",
        "Trainer.optimizers = @OptimizerGroup()\nOptimizerGroup.transforms = [@clip_by_global_norm()]\n"
        "clip_by_global_norm.clip_norm = -1.0",
        ("`clip_norm` must be > 0", "a.gin:4")),
]  # fmt: skip
