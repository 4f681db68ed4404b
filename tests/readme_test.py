"""README's two commands are there, first, where .ci/run finds them."""

import pathlib

README = (pathlib.Path(__file__).resolve().parent.parent / "README.md").read_text()


def test_readme_opens_with_one_command_that_trains_and_one_that_tests():
    blocks = [block.split("```")[0].strip() for block in README.split("```bash\n")[1:]]
    assert len(blocks) == 2
    train, test = blocks
    assert "\n" not in train + test
    assert "configs/digits.gin" in train and "pip install" in train
    assert "-m pytest" in test and "pip install" in test
