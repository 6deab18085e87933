import json
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from streams.bundle import (
    CLOUD,
    CLOUD_TENSORS,
    DEVICE,
    FORMAT,
    ITEMS,
    LIVE,
    MANIFEST,
    SRM_TENSORS,
    TAU_RANGE,
    Items,
    device_tensors,
    load_bundle,
    load_manifest,
    save_bundle,
)
from streams.errors import BundleError

sys.path.insert(0, str(Path(__file__).parents[1]))
from bundles import make_bundle


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path / "b", n_items=20, d=8, srm_dim=4, text_dim=6)


def _again(bundle, path, *, items=None, device=None, cloud=None, **changes):
    manifest = msgspec.structs.asdict(bundle.manifest) | changes
    manifest = {key: value for key, value in manifest.items() if key not in {"format", "bundle_id", "files"}}
    given = (items or bundle.items, device or bundle.device, cloud or bundle.cloud, bundle.live)
    return save_bundle(path, manifest, *given)


def test_what_is_saved_is_loaded_bit_for_bit(bundle, tmp_path):
    _again(bundle, tmp_path / "again")
    again = load_bundle(tmp_path / "again")
    assert again.id == bundle.id, "the same content is the same bundle"
    assert again.items == bundle.items
    for name, tensor in bundle.device.items():
        assert np.array_equal(again.device[name], tensor)
    assert load_bundle(bundle.path, part="device").cloud == {}


@pytest.mark.parametrize("name", [ITEMS, DEVICE, CLOUD, LIVE])
@pytest.mark.parametrize("place", [0.0, 0.5, 0.999])
def test_a_changed_byte_is_noticed_and_its_file_is_named(bundle, name, place):
    file = bundle.path / name
    raw = bytearray(file.read_bytes())
    raw[int(place * len(raw))] ^= 1
    file.write_bytes(raw)
    with pytest.raises(BundleError, match=f"{name} was changed"):
        load_bundle(bundle.path)


def test_a_changed_hash_or_id_in_the_manifest_is_noticed(bundle):
    file = bundle.path / MANIFEST
    whole = json.loads(file.read_text())
    for change in ({"bundle_id": "0" * 16}, {"files": {**whole["files"], "more": "x"}}, {"format": 1}, {"extra": 1}):
        file.write_text(json.dumps(whole | change))
        with pytest.raises(BundleError):
            load_bundle(bundle.path)


@pytest.mark.parametrize("key", ["blend", "exclude_seen", "test", "recency_decay", "srm"])
def test_what_a_manifest_says_of_behaviour_cannot_be_changed(bundle, key):
    others = {
        "blend": {"sequence": 1.0, "text": 0.0, "live": 0.0},
        "exclude_seen": not bundle.manifest.exclude_seen,
        "test": {"start_ms": 1, "end_ms": 2, "interactions": 1},
        "recency_decay": 0.5,
        "srm": "sasrec",
    }
    file = bundle.path / MANIFEST
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: others[key]}))
    with pytest.raises(BundleError, match="was changed after it was written"):
        load_bundle(bundle.path)


@pytest.mark.parametrize(("key", "value"), [("n_items", 21), ("d", 9), ("srm_dim", 5), ("text_dim", 7)])
def test_a_manifest_whose_sizes_do_not_fit_its_tensors_is_refused(bundle, key, value):
    file = bundle.path / MANIFEST
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(BundleError):
        load_bundle(bundle.path)


def test_a_bundle_of_another_version_is_told_from_a_damaged_one(bundle):
    """An older format lacks fields and has others: what it is comes before what it lacks."""
    (bundle.path / MANIFEST).write_text(json.dumps({"format": FORMAT - 1, "bundle_id": "x"}))
    for read in (load_bundle, load_manifest):
        with pytest.raises(BundleError, match=f"format {FORMAT - 1}, this version reads {FORMAT}.*driftline train"):
            read(bundle.path)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"format": %d}' % FORMAT, b"\xff\xfe"])
def test_a_manifest_that_is_none_is_refused(bundle, raw):
    (bundle.path / MANIFEST).write_bytes(raw)
    with pytest.raises(BundleError, match="manifest"):
        load_bundle(bundle.path)


@pytest.mark.parametrize("name", [ITEMS, DEVICE, CLOUD, MANIFEST])
def test_a_missing_file_is_named_with_the_way_to_a_new_bundle(bundle, name):
    (bundle.path / name).unlink()
    with pytest.raises(BundleError, match=f"{name}.*driftline train"):
        load_bundle(bundle.path)


def test_a_bundle_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BundleError, match="nowhere"):
        load_bundle(tmp_path / "nowhere")


@pytest.mark.parametrize("name", [*device_tensors("gru4rec"), *CLOUD_TENSORS])
def test_a_tensor_that_is_missing_or_has_another_rank_is_named_before_anything_is_written(bundle, tmp_path, name):
    part = "cloud" if name in CLOUD_TENSORS else "device"
    tensors = dict(getattr(bundle, part))
    without = {key: value for key, value in tensors.items() if key != name}
    for broken, said in ((without, "is missing"), (tensors | {name: tensors[name][None]}, "has shape")):
        with pytest.raises(BundleError, match=f"tensor {name} {said}"):
            _again(bundle, tmp_path / "broken", **{part: broken})
    assert not (tmp_path / "broken").exists()


@pytest.fixture
def sasrec(tmp_path):
    return make_bundle(tmp_path / "s", n_items=20, d=8, srm_dim=4, text_dim=6, window=7, srm="sasrec")


def test_a_bundle_remembers_its_srm(bundle, sasrec, din):
    assert load_bundle(din.path).manifest.srm == "din"
    assert load_bundle(sasrec.path).manifest.srm == "sasrec"
    assert load_bundle(bundle.path).manifest.srm == "gru4rec"


@pytest.fixture
def din(tmp_path):
    return make_bundle(tmp_path / "d", n_items=20, d=8, srm_dim=4, text_dim=6, window=7, srm="din")


@pytest.mark.parametrize(("srm", "name"), [(srm, name) for srm in ("sasrec", "din") for name in SRM_TENSORS[srm]])
def test_a_tensor_of_the_srm_that_is_missing_or_has_another_rank_is_named(srm, request, tmp_path, name):
    made = request.getfixturevalue(srm)
    without = {key: value for key, value in made.device.items() if key != name}
    longer = np.concatenate([made.device[name]] * 2)
    for broken, said in ((without, "is missing"), (without | {name: longer}, "has shape")):
        with pytest.raises(BundleError, match=f"tensor {name} {said}"):
            _again(made, tmp_path / "broken", device=broken)


def test_a_din_whose_state_cannot_be_cut_into_its_parts_is_refused(din, tmp_path):
    wider = {
        name: np.concatenate([each, each[..., :1]], axis=-1) if each.shape[-1] == 4 else each
        for name, each in din.device.items()
    }
    with pytest.raises(BundleError, match=r"tensor .* has shape"):
        _again(din, tmp_path / "broken", device=wider, srm_dim=5)


def test_a_bundle_with_the_tensors_of_another_srm_than_it_names_is_refused(bundle, sasrec, din, tmp_path):
    for made, wrong in ((bundle, "sasrec"), (sasrec, "gru4rec"), (din, "sasrec"), (bundle, "din")):
        with pytest.raises(BundleError, match=rf"tensor srm\.\S+ is no part of the SRM it names, {wrong}"):
            _again(made, tmp_path / "wrong", srm=wrong)
    with pytest.raises(BundleError, match="no part of the SRM it names, gru4rec"):
        _again(bundle, tmp_path / "both", device=dict(sasrec.device) | dict(bundle.device))


def test_an_srm_that_this_version_does_not_know_is_refused_with_those_it_knows(bundle, tmp_path):
    with pytest.raises(BundleError, match=r"its SRM is 'caser'.*gru4rec, sasrec, din"):
        _again(bundle, tmp_path / "broken", srm="caser")
    assert not (tmp_path / "broken").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("part", "name"), [("device", "item_vectors"), ("cloud", "projector.2.bias")])
def test_nan_and_infinity_are_refused(bundle, tmp_path, part, name, value):
    tensors = {key: tensor.copy() for key, tensor in getattr(bundle, part).items()}
    tensors[name].flat[0] = value
    with pytest.raises(BundleError, match=f"tensor {name} holds NaN or infinity"):
        _again(bundle, tmp_path / "broken", **{part: tensors})


@pytest.mark.parametrize("tau", [0.0, 1e-40, 0.0099, -1.0, 1001.0])
def test_a_calibrator_that_never_lets_go_or_divides_by_nothing_is_refused(bundle, tmp_path, tau):
    tensors = dict(bundle.device) | {"calibrator.tau": np.array([tau], np.float32)}
    with pytest.raises(BundleError, match=r"calibrator.tau is .*, not from 0.01 to 1000"):
        _again(bundle, tmp_path / "broken", device=tensors)


@pytest.mark.parametrize("tau", TAU_RANGE)
def test_the_ends_of_what_a_calibrator_may_have_are_taken(bundle, tmp_path, tau):
    tensors = dict(bundle.device) | {"calibrator.tau": np.array([tau], np.float32)}
    _again(bundle, tmp_path / "other", device=tensors)
    assert load_bundle(tmp_path / "other").device["calibrator.tau"] == np.float32(tau)


def test_a_wrong_size_along_one_axis_is_refused(bundle, tmp_path):
    wrong = dict(bundle.device) | {"item_vectors": bundle.device["item_vectors"][:, :-1]}
    with pytest.raises(BundleError, match=r"item_vectors has shape \(20, 7\), wants \(N, d\)"):
        _again(bundle, tmp_path / "broken", device=wrong)


def test_sizes_that_no_setting_names_must_still_agree_with_each_other(bundle, tmp_path):
    """H is free, but a layer's output is the next one's input."""
    for part, name in (("device", "calibrator.mlp.0.bias"), ("cloud", "projector.0.bias")):
        tensors = dict(getattr(bundle, part))
        with pytest.raises(BundleError, match="has shape"):
            _again(bundle, tmp_path / "broken", **{part: tensors | {name: np.zeros(tensors[name].size + 1)}})


def test_a_catalogue_with_an_item_twice_or_of_another_length_is_refused(bundle, tmp_path):
    twice = Items([*bundle.items.ids[:-1], bundle.items.ids[0]], bundle.items.titles, bundle.items.categories)
    with pytest.raises(BundleError, match="stands twice"):
        _again(bundle, tmp_path / "broken", items=twice)
    short = Items(bundle.items.ids[:-1], bundle.items.titles[:-1], bundle.items.categories[:-1])
    with pytest.raises(BundleError, match="20 items"):
        _again(bundle, tmp_path / "broken", items=short)


def test_saving_over_a_bundle_replaces_it_whole(bundle):
    other = {key: tensor + 1 for key, tensor in bundle.device.items()}
    manifest = _again(bundle, bundle.path, device=other)
    assert load_bundle(bundle.path).id == manifest.bundle_id != bundle.id
    assert [each.name for each in bundle.path.parent.iterdir()] == [bundle.path.name], "no scratch is left"


def test_a_folder_that_is_no_bundle_is_never_replaced(bundle, tmp_path):
    papers = tmp_path / "papers"
    papers.mkdir()
    (papers / "thesis.txt").write_text("years")
    for path in (papers, papers / "thesis.txt"):
        with pytest.raises(BundleError, match="is there and is no bundle"):
            _again(bundle, path)
    assert (papers / "thesis.txt").read_text() == "years"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert load_bundle(_again(bundle, empty) and empty).id == bundle.id


def test_what_lies_beside_is_there_when_the_bundle_is(bundle, tmp_path):
    manifest = msgspec.structs.asdict(bundle.manifest)
    manifest = {key: value for key, value in manifest.items() if key not in {"format", "bundle_id", "files"}}

    def beside(folder, bundle_id):
        assert not (tmp_path / "new").exists()
        (folder / "note").write_text(bundle_id)

    save_bundle(tmp_path / "new", manifest, bundle.items, bundle.device, bundle.cloud, bundle.live, beside)
    assert (tmp_path / "new" / "note").read_text() == load_bundle(tmp_path / "new").id == bundle.id
