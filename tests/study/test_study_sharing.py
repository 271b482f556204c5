"""A study shared by several processes: no trial lost, none counted twice, the same result as one process
alone.
"""

import contextlib
import fcntl
import json
import multiprocessing
import os
import random
import threading
import time

import optuna
import pytest
from postgres_server import Server
from shared_studies import (
    PACE,
    RUN,
    Sharing,
    Studies,
    busy,
    check_accounts,
    kill,
    lead,
    lead_too,
    setting,
    work,
)

from mpsearch.errors import MissingExtraError, MpsearchError, OptionError, StudyError
from mpsearch.study import explore
from mpsearch.study.sharing import heartbeat, journal, queue, storage
from mpsearch.study.sharing.database import connect
from mpsearch.study.sharing.journal import JournalLock, join_journal, open_journal
from mpsearch.study.sharing.pace import Pace
from mpsearch.study.sharing.storage import Place


@pytest.fixture(scope="module")
def context():
    """Processes that start with everything imported."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["shared_studies", "mpsearch.study.sharing.database"])
    return server


@pytest.fixture(scope="module")
def server():
    started = Server()
    yield started
    started.remove()


@pytest.fixture
def empty(server):
    """The server's URL, all studies gone."""
    yield server.url
    with contextlib.closing(connect(server.url, PACE)) as held:
        for study in held.get_all_studies():
            held.delete_study(study._study_id)


@pytest.fixture
def studies():
    """`studies(where)`; closed when the test ends."""
    opened = []

    def make(where):
        opened.append(Studies(str(where), RUN, PACE))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process finds by itself."""
    return lead(Studies(str(tmp_path_factory.mktemp("alone")), RUN, PACE), 32, None)


class Crew:
    """Workers, and what befalls them while the leader waits."""

    def __init__(self, context, where, log):
        self._start = lambda *about: context.Process(target=work, args=(str(where), str(log), *about))
        self.workers, self.killed = [], []

    def add(self, seconds, elsewhere=False):
        self.workers.append(self._start(seconds, elsewhere))
        self.workers[-1].start()

    def kill(self):
        self.killed.append(self.workers[len(self.killed)])
        kill(self.killed[-1])

    def replace_when_busy(self, studies, elsewhere=False):
        """The first worker never ends what it began; only once it is killed, another is there."""
        if not self.killed and any(busy(s, self.workers[0]) for s in studies.found()):
            self.kill()
            self.add(0.05, elsewhere)

    def end(self):
        for process in self.workers:
            process.join(30)
            assert process.exitcode == (-9 if process in self.killed else 0)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["noticed at once", "missed after the grace"])
def test_what_a_killed_worker_had_on_a_journal_is_tried_again(context, studies, tmp_path, alone, elsewhere):
    check_one_killed(Crew(context, tmp_path, tmp_path / "log"), studies(tmp_path), alone, elsewhere)


@pytest.mark.parametrize(
    "elsewhere",
    [pytest.param(False, marks=pytest.mark.slow), True],
    ids=["noticed at once", "missed after the grace"],
)
def test_what_a_killed_worker_had_on_a_server_is_tried_again(
    context, studies, empty, tmp_path, alone, elsewhere
):
    check_one_killed(Crew(context, empty, tmp_path / "log"), studies(empty), alone, elsewhere)


def check_one_killed(crew, held, alone, elsewhere):
    crew.add(600, elsewhere)
    sharing = Sharing(
        takes_part=False, job={}, pace=PACE, watch=lambda: crew.replace_when_busy(held, elsewhere)
    )
    found = lead(held, 10, sharing, measure=_not_here)
    crew.end()
    assert found == alone[:10]
    (study,) = held.found()
    assert check_accounts(study, 10, 1)["FAIL"] == len(crew.killed) == 1


def _not_here(indices):
    raise AssertionError("the leader only waits")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_four_workers_two_killed_and_the_server_restarted(
    context, studies, server, empty, tmp_path, alone, seed
):
    held, crew, draw, said = studies(empty), Crew(context, empty, tmp_path / "log"), random.Random(seed), []
    for elsewhere in (True, False, True, False):
        crew.add(0.15, elsewhere)
    moments = sorted(
        (draw.randrange(1, 28), draw.uniform(0, 0.4)) for _ in range(3)
    )  # trials done, and seconds after that
    events = draw.sample(["kill", "kill", "restart"], 3)

    def watch():
        done = sum(
            t.state == optuna.trial.TrialState.COMPLETE
            for study in held.found()
            for t in study.get_trials(deepcopy=False)
        )
        while moments and done >= moments[0][0]:
            time.sleep(moments.pop(0)[1])
            if events.pop(0) == "kill":
                crew.kill()
            else:
                server.stop()
                time.sleep(1)
                server.start()
                return  # what is open of this process's own connections is the leader's to mend

    found = lead(
        held,
        32,
        Sharing(takes_part=False, job={}, pace=PACE, watch=watch, say=said.append),
        measure=_not_here,
    )
    crew.end()
    assert not moments and len(crew.killed) == 2
    assert found == alone
    (study,) = held.found()
    # a worker that is cut off between its claim and the server's answer leaves a trial that nobody measures:
    # one for each of the four at most
    print(f"seed {seed}: {dict(check_accounts(study, 32, 2 + 4))}; the leader said {said}")
    measured = (tmp_path / "log").read_text().splitlines()
    assert len({line.split()[1] for line in measured}) == 32


def test_only_one_leads_a_study(context, studies, empty, tmp_path):
    for where in (empty, str(tmp_path)):
        held, answers = studies(where), context.SimpleQueue()

        def second(where=where, answers=answers):
            if answers.empty():
                process = context.Process(target=lead_too, args=(where, answers))
                process.start()
                process.join(60)

        lead(held, 9, Sharing(pace=PACE, watch=second))
        assert "Another process is " in answers.get()
        lead(held, 9, Sharing(pace=PACE))  # the hold ends with its holder


def test_a_result_that_comes_too_late_is_dropped(studies, tmp_path, alone):
    held, taken = studies(tmp_path), []

    def measure(indices):
        if not taken:  # what another process would do that thinks this one dead
            (study,) = held.found()
            (mine,) = study.get_trials(states=(optuna.trial.TrialState.RUNNING,))
            queue.give_back(study, mine, "its process died")
            taken.append(mine.number)
        return setting()[1](indices)

    assert lead(held, 9, Sharing(pace=PACE), measure) == alone[:9]
    (study,) = held.found()
    assert check_accounts(study, 9, 1)["FAIL"] == 1 and study.trials[taken[0]].values is None


def test_a_trial_that_was_added_twice_is_measured_once(studies, tmp_path, alone):
    held, doubled = studies(tmp_path), []

    def watch():
        waiting = [t for s in held.found() for t in s.get_trials(states=(optuna.trial.TrialState.WAITING,))]
        if waiting and not doubled:
            (study,) = held.found()
            study.add_trial(waiting[-1])
            doubled.append(waiting[-1].user_attrs["ordinal"])

    calls = []
    assert (
        lead(held, 9, Sharing(pace=PACE, watch=watch), lambda x: calls.append(x) or setting()[1](x))
        == alone[:9]
    )
    (study,) = held.found()
    assert sorted(t.state.name for t in study.trials if t.user_attrs["ordinal"] in doubled) == [
        "COMPLETE",
        "FAIL",
    ]
    assert len(calls) == len(set(calls)) == 9


def test_a_trial_that_costs_worker_after_worker_ends_the_run_and_a_new_one_tries_again(
    studies, tmp_path, alone
):
    held, losses = studies(tmp_path), []

    def watch():
        for study in held.found():
            for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,)):
                if trial.user_attrs["ordinal"] == 4 and study._storage.set_trial_state_values(
                    trial._trial_id, optuna.trial.TrialState.RUNNING
                ):
                    study._storage.set_trial_user_attr(
                        trial._trial_id,
                        heartbeat.OWNER,
                        {"host": heartbeat._machine(), "pid": 2**22 + 1, "started": 1},
                    )
                    losses.append(trial.number)

    with pytest.raises(MpsearchError, match="Trial 4 was lost 5 times, at last because its process died"):
        lead(held, 9, Sharing(pace=PACE, watch=watch))
    assert len(losses) == 5
    assert lead(held, 9, Sharing(pace=PACE)) == alone[:9]


def test_a_writer_mends_what_a_dead_one_left_in_the_journal(tmp_path):
    path = tmp_path / "journal.log"
    with open_journal(path) as leader:
        optuna.create_study(study_name="s", storage=leader)
        worker = optuna.load_study(study_name="s", storage=join_journal(path))
        for tail in (b'{"op_code": 4, "worker', b"x" * 200_000):
            with path.open("ab") as file:
                file.write(tail)
            lock = path.with_name(path.name + ".lock")
            lock.touch()
            os.utime(lock, (time.time() - 60,) * 2)
            start = time.monotonic()
            worker.set_user_attr("seen", len(tail))
            assert time.monotonic() - start < journal.GRACE_S and not lock.exists()
            assert optuna.load_study(study_name="s", storage=leader).user_attrs == {"seen": len(tail)}
        assert all(json.loads(line) for line in path.read_text().splitlines())


def test_one_writer_at_a_time_and_the_system_frees_a_dead_ones_lock(tmp_path):
    path = tmp_path / "journal.log"
    first, second, order = JournalLock(path), JournalLock(path), []
    first.acquire()
    waiting = threading.Thread(target=lambda: (second.acquire(), order.append("second"), second.release()))
    waiting.start()
    time.sleep(0.2)
    order.append("first")
    with path.with_name(path.name + ".writer").open("wb") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    first.release()
    waiting.join(5)
    assert order == ["first", "second"]


def test_silence_on_a_journal_is_judged_by_ones_own_clock(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now[0])
    judge = heartbeat.JournalPulse(None, Pace(beat_s=1, grace_s=10))
    trial = optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING, user_attrs={heartbeat.BEAT: 5.0})
    seen = []
    for step, beat in ((0, 5.0), (9, 5.0), (2, 1e9), (9, 1e9), (2, 1e9)):
        now[0] += step
        trial.set_user_attr(heartbeat.BEAT, beat)
        seen.append(bool(judge.silent(None, [trial])))
    assert seen == [False, False, False, False, True]


def test_a_storage_out_of_reach_is_waited_for_and_then_named(tmp_path):
    said, calls = [], []

    def action():
        calls.append(1)
        if len(calls) < 3:
            raise optuna.exceptions.StorageInternalError("gone")
        return "there"

    assert Pace(poll_s=0.01).patiently(action, said.append) == "there" and len(said) == 2
    with pytest.raises(StudyError, match="could not be reached for 0 s"):
        Pace(poll_s=0.01, patience_s=0).patiently(lambda: calls.clear() or action())
    with pytest.raises(
        StudyError, match=r"postgresql\+psycopg://nobody:\*\*\*@/none\?host=.* cannot be used"
    ):
        lead(Studies(f"postgresql://nobody:secret@/none?host={tmp_path}", RUN, PACE), 1, Sharing(pace=PACE))


def test_a_worker_that_starts_while_the_server_is_away_waits_for_it(server, empty, studies):
    held, said = studies(empty), []
    server.stop()
    back = threading.Timer(0.5, server.start)
    back.start()
    try:
        assert PACE.patiently(held.found, said.append) == []
    finally:
        back.join()
    assert len(said) == 2 and "cannot be reached (" in said[0]
    with pytest.raises(StudyError, match=r"could not be reached for 0 s \(.*No such file"):
        Pace(patience_s=0).patiently(studies("postgresql://nobody@/none?host=/nowhere").found)


def test_what_a_storage_cannot_be_is_said(tmp_path, monkeypatch):
    with pytest.raises(OptionError, match="hands one waiting trial to two workers"):
        storage.check_sharing("sqlite:///trials.db")
    with pytest.raises(OptionError, match=r"grace_s=5.*grace_s must exceed beat_s"):
        Pace(beat_s=10, grace_s=5)
    with pytest.raises(
        OptionError, match=r"redis:/\.\.\. is not a storage that mpsearch knows. Give postgresql://"
    ):
        storage.storage_kind("redis://host")
    with pytest.raises(OptionError, match="names no file"):
        lead_at(Place("sqlite://", "s"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        MissingExtraError,
        match=r"'psycopg', which is not installed. Run: pip install 'mpsearch\[postgresql\]'",
    ):
        lead_at(Place("postgresql://user@host/database", "s"))


def lead_at(place):
    p, loss, budgets = setting()
    return explore(p, "proxy", budgets, loss, place, 9, seed=3)


def test_one_process_may_keep_its_study_in_sqlite(tmp_path, alone):
    assert lead_at(Place(f"sqlite:///{tmp_path}/new/trials.db", "s")) == alone[:9]
