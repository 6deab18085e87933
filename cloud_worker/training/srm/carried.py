"""What small models have in common whose state is carried from event to event, at the same cost for each."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from cloud_worker.sequence import PAD
from cloud_worker.training.data import Histories, Ints
from cloud_worker.training.srm.base import Floats, Srm


class CarriedSrm(Srm):
    """A small model whose state after an event follows from the state before it and the event's item."""

    carries_state = True

    @torch.no_grad()
    def running_states(self, histories: Histories, users: Ints, positions: Ints) -> Floats:
        """(Q, h) states of users (Q,) when their first positions (Q,) are known, never reset."""
        self.eval()
        device, table = self.bias.device, self.table()
        lengths = np.zeros(histories.n_users, np.int64)
        np.maximum.at(lengths, users, positions)
        found = np.zeros((len(users), table.shape[1]), np.float32)
        order = np.argsort(users, kind="stable")
        edges = np.searchsorted(users[order], np.arange(histories.n_users + 1))
        for batch in _whole(lengths, 8192):
            rows = np.full((len(batch), int(lengths[batch].max())), PAD, np.int64)
            for row, user in enumerate(batch):
                rows[row, : lengths[user]] = histories.of(user, int(lengths[user]))
            items = torch.from_numpy(rows).to(device)
            after = self.before_each(items, torch.zeros_like(items), table, None)[1].cpu().numpy()
            for row, user in enumerate(batch):
                wanted = order[edges[user] : edges[user + 1]]
                known = wanted[positions[wanted] > 0]
                found[known] = after[row, positions[known] - 1]
        return found

    def after(self, hidden: Tensor, windows: Tensor) -> Tensor:
        """See `Srm.after`: of the windows only the last items are looked at."""
        last = windows.gather(1, (windows >= 0).sum(dim=1, keepdim=True) - 1)
        return self.before_each(last, last, self.table(), hidden)[1][:, 0]


def _whole(lengths: Ints, positions: int) -> Iterator[Ints]:
    """Cut users into batches of at most so many padded positions, users of like length together."""
    users = np.flatnonzero(lengths)
    users = users[np.argsort(-lengths[users], kind="stable")]
    begin = 0
    while begin < len(users):
        rows = max(1, positions // int(lengths[users[begin]]))
        yield users[begin : begin + rows]
        begin += rows
