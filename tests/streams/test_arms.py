import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.errors import SettingsError
from streams.experiment.arms import MAX_ARMS, ArmSpec, Experiment, load_experiment, parse_arm, parse_arms

NAMES = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,47}", fullmatch=True)
KEYS = st.from_regex(r"[a-z][a-z0-9_]{0,10}", fullmatch=True)
WORDS = st.from_regex(r"[a-z][a-z_-]{0,10}", fullmatch=True).filter(
    lambda word: word not in {"true", "false", "nan", "inf", "infinity"}
)
VALUES = st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False) | WORDS
ARMS = st.builds(ArmSpec, NAMES, NAMES, st.dictionaries(KEYS, VALUES, max_size=4))


@given(ARMS)
def test_an_arm_survives_the_way_through_a_flag(arm):
    back = parse_arm(arm.flag())
    assert back == arm
    assert {key: type(value) for key, value in back.params.items()} == {
        key: type(value) for key, value in arm.params.items()
    }


def test_forms_of_a_flag():
    assert parse_arm("never") == ArmSpec("never", "never", {})
    assert parse_arm("every-n:n=10") == ArmSpec("every-n-n10", "every-n", {"n": 10})
    assert parse_arm("slow=every-n:n=50,jitter=0.5,x=true,y=word") == ArmSpec(
        "slow", "every-n", {"n": 50, "jitter": 0.5, "x": True, "y": "word"}
    )
    assert parse_arm(" drift : threshold = 0.3 ".replace(" ", "")).params == {"threshold": 0.3}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "''"),
        ("every-n:n", "'n' is not KEY=VALUE"),
        ("every-n:=5", "'=5' is not KEY=VALUE"),
        ("Loud=never", "arm name 'Loud'"),
        ("=never", "arm name ''"),
        ("a=", "'' is not a policy name"),
        ("x" * 49, "up to 48"),
    ],
)
def test_a_flag_that_cannot_be_read_is_quoted_with_what_is_wrong(text, said):
    with pytest.raises(SettingsError) as told:
        parse_arm(text)
    assert said in told.value.message


def test_an_experiment_needs_arms_with_names_of_their_own():
    assert [arm.name for arm in parse_arms(["never", "drift:threshold=0.2"]).arms] == ["never", "drift-threshold0.2"]
    with pytest.raises(SettingsError, match="at least one arm"):
        parse_arms([])
    with pytest.raises(SettingsError, match="two arms are called 'never'"):
        parse_arms(["never", "never"])
    with pytest.raises(SettingsError, match=f"at most {MAX_ARMS}"):
        parse_arms([f"a{n}=never" for n in range(MAX_ARMS + 1)])


def _file(tmp_path, text):
    path = tmp_path / "trial.toml"
    path.write_text(text)
    return path


def test_an_experiment_file_is_read_whole(tmp_path):
    text = """
        [experiment]
        design = "split"
        salt = "2026-11"
        [[arm]]
        policy = "never"
        [[arm]]
        name = "steady"
        policy = "every-n"
        n = 10
    """
    found = load_experiment(_file(tmp_path, text))
    arms = (ArmSpec("never", "never", {}), ArmSpec("steady", "every-n", {"n": 10}))
    assert found == Experiment("trial", arms, "split", "2026-11")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("not toml", "is not TOML"),
        ("x = 1", "unknown key 'x'"),
        ("[experiment]\ncolour = 1\n[[arm]]\npolicy='never'", "unknown key experiment.colour"),
        ("[experiment]\ndesign = 'both'\n[[arm]]\npolicy='never'", "wants 'paired' or 'split'"),
        ("[[arm]]\nname='a'", "no policy"),
        ("[[arm]]\npolicy='never'\nx=[1]", "no scalar"),
        ("arm = 5", "[[arm]] tables"),
        ("arm = [5]", "[[arm]] tables"),
        ("experiment = 5", "one [experiment] table"),
        ("", "at least one arm"),
    ],
)
def test_a_file_that_means_nothing_here_is_refused_with_the_key(tmp_path, text, said):
    with pytest.raises(SettingsError) as told:
        load_experiment(_file(tmp_path, text))
    assert said in told.value.message


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"nothing\.toml cannot be read"):
        load_experiment(tmp_path / "nothing.toml")


def test_a_paired_device_runs_all_arms_and_a_split_one_keeps_its_own():
    arms = tuple(ArmSpec(f"a{n}", "never") for n in range(3))
    assert Experiment("e", arms).arm_of("d") is None
    split = Experiment("e", arms, "split", "salt")
    owners = [split.arm_of(f"device-{n}") for n in range(6000)]
    assert owners == [split.arm_of(f"device-{n}") for n in range(6000)]
    for arm in range(3):
        assert 1850 < owners.count(arm) < 2150  # 2000 each, within 4 standard deviations
    resalted = Experiment("e", arms, "split", "pepper")
    moved = sum(resalted.arm_of(f"device-{n}") != owner for n, owner in enumerate(owners))
    assert 3700 < moved < 4300  # two in three, as if drawn anew
