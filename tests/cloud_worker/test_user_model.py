"""From histories to embeddings by way of text."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cloud_worker.profile_text import profile_text
from cloud_worker.user_model import History, Projector, TextUserModel
from streams.bundle import load_bundle
from streams.clock import ManualClock
from streams.errors import BundleError
from tests.bundles import make_bundle
from tests.encoders import HashEncoder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundle") / "b", n_items=40, profile_items=3)


def history(*items: int) -> History:
    return History(np.array(items, np.int32), np.arange(len(items), dtype=np.int64) * 1000)


def test_projector_equals_torch():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(24, 32), torch.nn.GELU(), torch.nn.Linear(32, 8))
    mine = Projector(*(net.state_dict()[name].numpy() for name in ("0.weight", "0.bias", "2.weight", "2.bias")))
    texts = np.random.default_rng(0).normal(0, 2, (50, 24)).astype(np.float32)
    with torch.no_grad():
        np.testing.assert_allclose(mine(texts), net(torch.from_numpy(texts)).numpy(), atol=1e-5)
    assert mine(texts).dtype == np.float32


def test_equal_texts_are_encoded_once_and_the_first_bears_the_cost(bundle):
    encoder = HashEncoder()
    model = TextUserModel(bundle, encoder, ManualClock())
    users = model.embed([history(1, 2, 3), history(4), history(9, 1, 2, 3), history(1, 2, 3)])
    texts = [profile_text([*items], [0] * len(items), bundle.items.titles, bundle.items.categories, last=3)
             for items in ((1, 2, 3), (4,))]  # fmt: skip
    assert encoder.asked == [texts]
    np.testing.assert_array_equal(users.vectors[0], users.vectors[3])
    np.testing.assert_array_equal(users.vectors[0], users.vectors[2])
    assert users.tokens[0] > 0
    assert users.tokens[2:].tolist() == [0, 0]
    assert (users.encoded, users.cached, users.shared) == (2, 0, 2)
    assert users.vectors.shape == (4, 128)


def test_a_new_user_without_history_has_an_embedding(bundle):
    users = TextUserModel(bundle, HashEncoder(), ManualClock()).embed([history()])
    assert np.isfinite(users.vectors).all()


def test_another_encoder_than_the_bundles_is_refused(bundle):
    with pytest.raises(BundleError, match=r"trained with the encoder test-encoder of dimension 384.*other-model"):
        TextUserModel(bundle, HashEncoder(model_id="other-model"), ManualClock())
    with pytest.raises(BundleError, match="dimension 12"):
        TextUserModel(bundle, HashEncoder(dim=12), ManualClock())
    with pytest.raises(BundleError, match="without its cloud part"):
        TextUserModel(load_bundle(bundle.path, part="device"), HashEncoder(), ManualClock())
