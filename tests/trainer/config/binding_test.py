"""Config: every mistake is found with its line; bindings reach what they name; what was asked reads back."""

import importlib
import pathlib
import subprocess
import sys

import gin
import keras
import pytest
import tensorflow as tf

from trainer import Trainer, config
from trainer.config import files as gin_files
from trainer.config import registry, usage
from trainer.diagnosis import explain

RESEARCH = """
from trainer import Trainer, configurable


class MyTrainer(Trainer):
    def __init__(self, margin=1.0, **kwargs):
        super().__init__(**kwargs)
        self.margin = margin


class Broken:
    def __init__(self, x=1):
        raise KeyError("boom")


class Plain:
    def __init__(self, width):
        self.width = width


def data(n=4):
    return n


def hook(trainer, step, metrics, n=4):
    return n
"""


@pytest.fixture(autouse=True)
def fresh_config():
    yield
    gin.clear_config()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A project of its own: `research_NAME.py`, in the working directory; the module's name is returned by write."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def write(folder, text, name="a.gin"):
    (folder / name).write_text(text)
    return str(folder / name)


def research(folder):
    # gin's registry cannot be reset: each test imports a module of its own
    name = f"research_{abs(hash(str(folder)))}"
    (folder / f"{name}.py").write_text(RESEARCH)
    return name


def mistakes(*args, **kwargs):
    with pytest.raises(config.ConfigError) as caught:
        config.read(*args, **kwargs)
        config.bind()
    return str(caught.value)


def bind(*args, **kwargs):
    config.read(*args, **kwargs)
    config.bind()


# Phase 1


def test_reading_imports_no_tensorflow(folder):
    path = write(folder, "include 'base.gin'\nrun.train_steps = 5\n")
    code = (
        "import sys; from trainer import config;"
        f"config.read([{path!r}], ['run.seed = 1']); print('tensorflow' in sys.modules, 'keras' in sys.modules)"
    )
    root = str(gin_files.ROOT)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": root})
    assert ran.stdout.split() == ["False", "False"], ran.stderr


def test_all_mistakes_of_the_files_are_reported_at_once(folder):
    path = write(
        folder,
        "include 'bas.gin'\n"
        "run.seed = 1\n"
        "run.seed = 2\n"
        "Trainer.loss = mse\n"
        "run.hooks = [1,\n"
        "run.epochs = 2\n"
        "import no_such_module\n"
        "run.train_data = %gin.REQUIRED\n",
    )
    text = mistakes([path], ["train_steps = 5"])
    assert text.startswith("7 mistakes:")
    assert "a.gin:1: the gin file `bas.gin` does not exist" in text
    assert "a.gin:3: `run.seed` is bound already at a.gin:2. Remove one." in text
    assert "a.gin:4: `mse` is not a value. A string needs quotes ('mse')" in text
    assert "a.gin:5: not a gin statement: A bracket or a string is not closed." in text
    assert "a.gin:7: there is no module `no_such_module`" in text
    assert "a.gin:8: `run.train_data` is required and has no value (a function that returns a source" in text
    assert text.endswith("Set it: --gin_param 'run.train_data = ...'.")
    assert "`train_steps` has no dot" in text and "`run.train_steps = ...`" in text


def test_a_missing_file_names_its_neighbour(folder):
    write(folder, "", "digits.gin")
    assert "Did you mean `digit" in mistakes(["digit.gin"])


def test_home_is_expanded(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    write(folder, "run.seed = 3\n")
    config.read(["~/a.gin"])


def test_undefined_macro(folder):
    path = write(folder, "STEPS = 3\nrun.hooks = [\n  1,\n  %STEP,\n]\n")
    assert mistakes([path]) == "a.gin:4: the macro `%STEP` is not defined. Did you mean `STEPS`?"


def test_a_param_may_override_a_macro_but_not_misspell_it(folder):
    path = write(folder, "STEPS = 3\nrun.train_steps = %STEPS\n")
    config.read([path], ["STEPS = 4"])
    assert "Did you mean the macro `STEPS`?" in mistakes([path], ["STEPZ = 4"])


def test_a_name_shipped_with_us_may_not_be_hidden(folder, monkeypatch):
    (folder / "losses").mkdir()
    (folder / "losses" / "__init__.py").write_text("")
    monkeypatch.delitem(sys.modules, "losses", raising=False)
    monkeypatch.syspath_prepend(str(folder))
    text = mistakes([])
    assert f"`losses` is imported from {folder}/losses, which hides" in text
    assert "Rename it (`my_losses`)" in text


def test_folders_go_to_the_end_of_the_path(folder):
    (folder / "sub").mkdir()
    path = write(folder / "sub", "run.seed = 1\n")
    config.read([path])
    assert sys.path[-2:] == [str(folder / "sub"), str(folder)]


def test_gin_tf_is_refused(folder):
    assert "a.gin:1: `gin.tf` does not work" in mistakes([write(folder, "import gin.tf.external_configurables\n")])


def test_an_include_twice_does_not_undo_an_override(folder):
    write(folder, "run.seed = 1\n", "common.gin")
    first = write(folder, "include 'common.gin'\nrun.seed = 2\n", "b.gin")
    second = write(folder, "include 'common.gin'\n", "c.gin")
    bind([first, second])
    assert gin.query_parameter("trainer.run.seed") == 2


def test_later_wins_params_after_files_flags_last(folder):
    a, b = write(folder, "run.seed = 1\nrun.epochs = 1\nrun.mode = 'eval'\n"), write(folder, "run.seed = 2\n", "b.gin")
    bind([a, b], ["run.epochs = 7"], flags={"mode": "train"})
    assert gin.query_parameter("run.seed") == 2
    assert gin.query_parameter("run.epochs") == 7
    assert gin.query_parameter("run.mode") == "train"


# Phase 2


def test_names_and_parameters_are_checked(folder):
    name = research(folder)
    path = write(
        folder,
        f"import {name}\n"
        "run.train_step = 5\n"
        "Adam.learning_rat = 1\n"
        "Adm.epsilon = 3\n"
        "Trainer.loss = @Hinge()\n"
        "Dense.unitss = 3\n"
        f"{name}.MyTrainer.guards = 'x'\n"
        f"{name}.Nope.x = 1\n"
        "keras.optimizers.SGD.momentum = 3\n"
        "SGD.momentum = 3\n",
    )
    assert [line.split(" It has ")[0] for line in mistakes([path]).splitlines()] == [
        "8 mistakes:",
        "  a.gin:2: `run` has no parameter `train_step`. Did you mean `train_steps`?",
        "  a.gin:3: `Adam` has no parameter `learning_rat`. Did you mean `learning_rate`?",
        "  a.gin:4: `Adm` is unknown. Did you mean `Adam`?",
        "  a.gin:5: `Hinge` is ambiguous: `keras.losses.Hinge` or `keras.metrics.Hinge`. Write the full name.",
        "  a.gin:6: `Dense` has no parameter `unitss`. Did you mean `units`?",
        f"  a.gin:7: `{name}.MyTrainer` has no parameter `guards`. Did you mean `guard`?",
        f"  a.gin:8: `{name}.Nope` is unknown: `{name}` has no `Nope`.",
        "  a.gin:10: `SGD.momentum` is bound already at a.gin:9. Remove one.",
    ]


def test_a_call_without_a_needed_argument(folder):
    text = mistakes([write(folder, "run.hooks = [\n  @Dense(),\n]\n")])
    assert text.startswith("a.gin:2: `@Dense()` needs `units` (") and text.endswith(" Bind it: `Dense.units = ...`.")


def test_public_keras_is_registered_once_and_stays_itself(folder):
    before = keras.optimizers.Adam
    bind([], ["Adam.learning_rate = 0.25", "Convolution2D.filters = 3"])
    assert keras.optimizers.Adam is before
    assert type(keras.optimizers.Adam()) is before
    assert float(keras.optimizers.Adam().learning_rate) == pytest.approx(0.001)
    assert float(config.injected("keras.optimizers.Adam")().learning_rate) == 0.25
    assert gin.query_parameter("keras.layers.Conv2D.filters") == 3
    for module in ("layers", "losses", "metrics", "optimizers", "initializers", "regularizers", "activations"):
        public = getattr(keras, module)
        for name in dir(public):
            if name[0] != "_" and callable(getattr(public, name)) and name not in ("get", "serialize", "deserialize"):
                found = registry.find(f"keras.{module}.{name}", {}).wrapped
                assert found is getattr(public, name), name


def test_undecorated_research_code_with_dynamic_registration(folder):
    name = research(folder)
    path = write(
        folder,
        "from __gin__ import dynamic_registration\n"
        f"include 'base.gin'\nimport {name}\nimport tensorflow as tf\n"
        f"run.trainer = @{name}.MyTrainer\n"
        f"run.hooks = [@tf.nn.relu, @p/{name}.Plain()]\n"
        f"p/{name}.Plain.width = %WIDTH\nWIDTH = 7\n"
        "Trainer.guard = 'off'\n"
        f"{name}.MyTrainer.margin = 2.0\n"
        "Trainer.model = @Sequential()\nSequential.layers = [@Dense()]\nDense.units = 1\n"
        "Trainer.loss = 'mse'\nTrainer.metrics = ()\nTrainer.optimizers = @g/Adam()\ng/Adam.learning_rate = 0.5\n",
    )
    bind([path])
    trainer = gin.get_bindings("trainer.run")["trainer"]()
    assert type(trainer).__name__ == "MyTrainer" and isinstance(trainer, Trainer)
    assert trainer.guard == "off" and trainer.margin == 2.0
    hooks = gin.get_bindings("trainer.run")["hooks"]
    assert hooks[0](-1.0) == 0.0 and hooks[1].width == 7


def test_a_binding_of_the_subclass_wins(folder):
    name = research(folder)
    path = write(
        folder,
        f"import {name}\nrun.trainer = %T\nT = @{name}.MyTrainer\nTrainer.guard = 'off'\n"
        f"{name}.MyTrainer.guard = 'stop'\n"
        "Trainer.compile = 'eager'\n",
    )
    bind([path])
    assert gin.get_bindings(f"{name}.MyTrainer") == {"guard": "stop", "compile": "eager"}


def test_unused_bindings_are_named(folder):
    name = research(folder)
    path = write(
        folder,
        f"import {name}\nSPARE = 1\nrun.train_data = @{name}.data\n{name}.data.n = 3\n"
        f"x/{name}.data.n = 4\nAdam.epsilon = 1.0\n",
    )
    bind([path])
    config.injected(f"{name}.data")()
    assert [line.split(" is never used")[0] for line in usage.unused()] == [
        "a.gin:2: the macro `SPARE`",
        "a.gin:3: `run.train_data`",
        f"a.gin:5: `x/{name}.data.n`",
        "a.gin:6: `Adam.epsilon`",
    ]


def test_bindings_that_only_overridden_ones_needed_are_dropped(folder):
    name = research(folder)
    path = write(
        folder,
        f"import {name}\nRATE = 0.5\nTrainer.optimizers = @OptimizerGroup()\nOptimizerGroup.optimizer = @s/Adam()\n"
        f"s/Adam.learning_rate = %RATE\nSGD.momentum = 0.5\nrun.train_data = @{name}.data\n{name}.data.n = 3\n",
    )
    bind([path], [f"run.train_data = @{name}.hook", "Trainer.optimizers = 'sgd'"])
    config.injected(f"{name}.data")()  # by the user's own code
    dropped = ["`OptimizerGroup.optimizer` (a.gin:4)", "`RATE` (a.gin:2)", "`s/Adam.learning_rate` (a.gin:5)"]
    assert usage.drop_overridden() == dropped
    in_file = [line for line in usage.unused() if line.startswith("a.gin")]
    assert [line.split(" is never used")[0] for line in in_file] == ["a.gin:6: `SGD.momentum`"]
    assert f"{name}.data.n = 3" in config.config_text() and "Adam" not in config.config_text()


def test_what_users_code_may_call_later_is_reported_later(folder):
    name = research(folder)
    with open(folder / f"{name}.py", "a") as file:
        file.write("\n\n@configurable\ndef score(k=1):\n    return k\n\n\ndef eval_end():\n    return score()\n")
    path = write(folder, f"import {name}\nK = 3\nscore.k = %K\nSGD.momentum = 0.5\n")
    for called in (False, True):
        bind([path])
        assert [line.split(" is")[0] for line in usage.unused()] == ["a.gin:4: `SGD.momentum`"]
        if called:
            assert importlib.import_module(name).eval_end() == 3
        expected = [] if called else ["a.gin:2: the macro `K`", "a.gin:3: `score.k`"]
        assert [line.split(" is")[0] for line in usage.unused_later()] == expected and usage.unused_later() == []


def test_a_binding_of_what_was_handed_on_uncalled_is_not_called_unused(folder):
    name = research(folder)
    bind([write(folder, f"import {name}\nrun.hooks = [@{name}.hook]\n{name}.hook.n = 3\nAdam.epsilon = 1.0\n")])
    assert [line.split(" is")[0] for line in usage.unused()] == ["a.gin:2: `run.hooks`", "a.gin:4: `Adam.epsilon`"]


def test_a_copied_binding_counts_as_used(folder):
    name = research(folder)
    path = write(
        folder,
        f"import {name}\nrun.trainer = @{name}.MyTrainer\n"
        "Trainer.model = @Sequential()\nSequential.layers = [@Dense()]\nDense.units = 1\n"
        "Trainer.loss = 'mse'\nTrainer.metrics = ()\nTrainer.optimizers = 'adam'\n",
    )
    bind([path])
    gin.get_bindings("trainer.run")["trainer"]()
    assert [line.split(" is")[0] for line in usage.unused()] == ["a.gin:2: `run.trainer`"]


def test_config_text_reads_back(folder):
    name = research(folder)
    path = write(
        folder,
        f"from {name} import Plain\nimport {name} as r\nrun.hooks = [@a/Plain(), {{'x': (1, 'two')}}]\nWIDTH = 7\n"
        "a/Plain.width = %WIDTH\nTrainer.optimizers = @Adam()\nrun.trainer = @r.MyTrainer\n",
    )
    bind([path])
    text = config.config_text()
    assert f"a/{name}.Plain.width = %WIDTH" in text
    again = write(folder, text, "again.gin")
    bind([again])
    assert config.config_text() == text
    assert gin.get_bindings("trainer.run")["hooks"][0].width == 7


def test_save_is_whole_and_difference_is_small(folder):
    bind([], ["run.train_steps = 5"], flags={"mode": "train"}, command="python -m trainer.main 'a b'")
    config.save(folder / "run")
    assert sorted(p.name for p in (folder / "run").iterdir()) == [
        "command.txt",
        "config.gin",
        "operative_config.gin",
        "resolved_config.gin",
    ]
    assert (folder / "run" / "command.txt").read_text() == "python -m trainer.main 'a b'\n"
    old = (folder / "run" / "config.gin").read_text()
    bind([], ["run.train_steps = 6"], flags={"mode": "eval"})
    assert config.difference(old, config.config_text()) == "-trainer.run.train_steps = 5\n+trainer.run.train_steps = 6"
    assert config.difference(old, old) == ""


def test_isolated_puts_the_configuration_back(folder):
    bind([], ["run.seed = 5"])
    with config.isolated():
        bind([], ["run.seed = 6", "Adam.epsilon = 1.0"])
        assert gin.query_parameter("run.seed") == 6
    assert config.config_text().count(" = ") == 1
    assert gin.query_parameter("run.seed") == 5


def test_a_bound_value_alone_is_built(folder):
    name = research(folder)
    bind([write(folder, f"import {name}\nrun.hooks = [@{name}.Broken()]\nrun.train_steps = @{name}.data()\n")])
    assert config.bound_value("trainer.run", "train_steps") == 4
    assert config.is_bound("run", "hooks") and not config.is_bound("run", "seed")


def test_what_run_needs(folder):
    with pytest.raises(config.ConfigError, match="`run.trainer` has no value"):
        config.read([], ["run.train_data = @data"], optional=["model_dir"])
    config.read([], ["run.train_data = @from_arrays", "run.trainer = @Trainer"], optional=["model_dir"])


# Errors


def test_an_error_shows_the_users_frame_and_the_binding(folder):
    name = research(folder)
    path = write(folder, f"import {name}\nrun.hooks = [@{name}.Broken()]\n")
    bind([path])
    with pytest.raises(KeyError) as caught:
        gin.get_bindings("trainer.run")["hooks"]
    text = explain.explain(caught.value)
    assert text.startswith("KeyError: 'boom'\n")
    assert f'{name}.py:13 in __init__\n      raise KeyError("boom")' in text
    assert text.endswith(f"built by a.gin:2: run.hooks = [@{name}.Broken()]")
    assert not explain.is_teaching(caught.value)


def test_an_error_in_traced_code_is_told_once(folder):
    name = research(folder)
    (folder / f"{name}_traced.py").write_text("def step(x):\n    raise KeyError('in the step')\n")
    sys.path.append(str(folder))
    step = tf.function(importlib.import_module(f"{name}_traced").step)
    with pytest.raises(KeyError) as caught:
        step(tf.constant(1.0))
    lines = explain.explain(caught.value).splitlines()
    assert lines[0] == "KeyError: 'in the step'"
    assert lines[-2:] == [f"  {name}_traced.py:2 in step", "      raise KeyError('in the step')"]
    assert len(lines) == 5  # the caller's frame, here the test, stands between


def test_a_value_error_of_ours_is_a_lesson(folder):
    with pytest.raises(ValueError) as caught:
        Trainer(model=3, loss="mse", metrics=(), optimizers="adam")
    assert explain.is_teaching(caught.value)
    with pytest.raises(ValueError) as caught:
        int("x")
    assert not explain.is_teaching(caught.value)


# The decorator


def test_configurable_keeps_keras_layers_constructible():
    @config.configurable
    class Scale(keras.layers.Layer):
        def __init__(self, factor=2.0, **kwargs):
            super().__init__(**kwargs)
            self.factor = factor

    @config.configurable("named_width", module="here")
    def width(n=1):
        return n

    gin.bind_parameter("Scale.factor", 5.0)
    gin.bind_parameter("here.named_width.n", 6)
    assert Scale().factor == 2.0
    assert gin.get_configurable("Scale")().factor == 5.0
    assert width() == 6


def test_parameters_over_the_mro():
    assert "learning_rate" in registry.parameters(keras.optimizers.AdamW)
    assert {"units", "name", "input_shape", "dtype"} <= registry.parameters(keras.layers.Dense)
    assert "units_" not in registry.parameters(keras.layers.Dense)

    class Free:
        def __init__(self, a, **kwargs):
            pass

    class Closed:
        def __init__(self, a):
            pass

    class Passing(Closed):
        def __init__(self, b, **kwargs):
            pass

    assert registry.parameters(Free) is None
    assert registry.parameters(Passing) == {"a", "b"}
    assert registry.parameters(lambda x, *args, y=1: 0) == {"x", "y"}


def test_gin_has_the_private_parts_that_we_read():
    assert gin.__file__ and pathlib.Path(gin.config.__file__).exists()
    c = gin.config
    seen = registry.internals()
    assert seen == (c._CONFIG, c._OPERATIVE_CONFIG, c._REGISTRY, c._CONSTANTS, c._inverse_lookup, c._SINGLETONS)
    gin.bind_parameter("gin.singleton.constructor", 3)
    assert seen.config[("", "gin.singleton")] == {"constructor": 3}
    entry = seen.registry["gin.singleton"]
    assert {"wrapped", "wrapper", "selector", "name"} <= set(entry._fields)
    assert seen.registry.matching_selectors("singleton") == ["gin.singleton"]
    assert seen.lookup(c.singleton) is entry
    reference = c.ConfigurableReference("a/b/gin.singleton", True)
    assert (reference.config_key, reference.evaluate) == (("a/b", "gin.singleton"), True)


EDGES = """
import gin
import keras

from trainer import configurable, data


@configurable
def network(width=8, bias=True):
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(width), keras.layers.Dense(1)])


@configurable
def schedule():
    return keras.optimizers.schedules.CosineDecay(0.1, 100)


@configurable
def of_step(step):
    return 0.1


@configurable
def rate():
    return 0.25


@gin.configurable
class Net(keras.Model):
    pass


class Child(Net):
    pass
"""


@pytest.fixture
def edges(folder):
    name = f"edges_{folder.name}"
    (folder / f"{name}.py").write_text(EDGES)
    yield lambda text: _bound(folder, f"import {name}\n" + text.replace("edges.", f"{name}."))
    sys.modules.pop(name, None)


def _bound(folder, text):
    config.read([write(folder, text)])
    config.bind()


def test_a_singleton_is_in_the_saved_config_and_is_one_object(edges, folder):
    edges(
        "run.hooks = [@shared/gin.singleton(), @shared/gin.singleton()]\n"
        "shared/gin.singleton.constructor = @edges.network\n"
    )
    text = config.config_text()
    one, other = gin.query_parameter("run.hooks")[0].scoped_configurable_fn(), None
    with config.isolated():
        _bound(folder, text)
        assert config.config_text() == text
        hooks = [reference.scoped_configurable_fn() for reference in gin.query_parameter("run.hooks")]
        assert hooks[0] is hooks[1] and hooks[0] is not one
    other = gin.query_parameter("run.hooks")[1].scoped_configurable_fn()
    assert one is other  # what was built before `load` stays the one object


@pytest.mark.parametrize("name", ["Net", "Child"])
def test_a_keras_class_decorated_with_gin_configurable_is_named(edges, name):
    with pytest.raises(
        config.ConfigError, match=r"a.gin:2: `Net` is a Keras layer or model decorated with gin.configurable.*trainer"
    ):
        edges(f"Trainer.model = @edges.{name}()\n")


@pytest.mark.parametrize(
    "binding, message",
    [
        ("edges.network.width = 'x'", "`.*network.width` must be a number, like its default 8, got 'x'"),
        ("edges.network.bias = 'no'", "`.*network.bias` must be True or False, like its default True, got 'no'"),
        ("Trainer.micro_batches = 'many'", "`Trainer.micro_batches` must be an int >= 1, got 'many'"),
        ("SGD.learning_rate = '1e-2'", "`SGD.learning_rate` must be a number, like its default 0.01"),
    ],
)
def test_a_string_in_the_place_of_a_number_is_an_error_with_its_line(edges, binding, message):
    with pytest.raises(config.ConfigError, match=f"a.gin:2: {message}"):
        edges(binding + "\n")


@pytest.mark.parametrize(
    "rate, message",
    [
        ("schedule", "schedule returns a CosineDecay when it is called.*learning_rate = @schedule"),
        ("of_step", "of_step fails when it is called without arguments"),
    ],
)
def test_a_learning_rate_that_was_not_called_is_a_sentence(edges, rate, message):
    edges(f"SGD.learning_rate = @edges.{rate}\nTrainer.optimizers = @SGD()\n")
    with pytest.raises(
        ValueError, match=f"`learning_rate` of SGD must be a number, a schedule, or a callable.*{message}"
    ):
        config.injected("trainer.Trainer")()
    edges("SGD.learning_rate = @edges.rate\nTrainer.optimizers = @SGD()\n")
    assert float(config.injected("trainer.Trainer")().groups[0].optimizer.learning_rate) == 0.25


def test_a_folder_that_hides_ours_is_named_in_python_too(tmp_path):
    (tmp_path / "layers").mkdir()
    (tmp_path / "layers/__init__.py").write_text("")
    # An editable install finds ours in spite of the folder; a wheel does not.
    as_wheel = "import sys\nsys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
    (tmp_path / "mine.py").write_text(f"{as_wheel}from trainer import add_loss\n")
    done = subprocess.run(
        [sys.executable, "mine.py"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(gin_files.ROOT), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert (
        f"`layers` is imported from {tmp_path}/layers, which hides Gradloom's own" in last
        and "Rename it (`my_layers`)" in last
    )
