"""The page of a run and of a sweep: self-contained, with valid pictures and every agent and config field."""

import base64
import dataclasses
import html.parser
import io
import shutil
import subprocess
import xml.etree.ElementTree

import numpy as np
import pytest
from PIL import Image

import envs
import marl_kl
from envs.pictures import agent_colours
from marl_kl.analysis import sweep_tables
from marl_kl.analysis.report import pages
from marl_kl.cli import main
from marl_kl.config import FirstOrderConfig, TrustRegionConfig
from marl_kl.results import WATCHED, Evaluation, Failure, SweepFailure, Timing
from marl_kl.storage import checkpoints, run_folder, run_record, run_tables, shards, stored_runs
from marl_kl.storage import stored_sweeps as sweep_folders
from marl_kl.storage.checkpoints import Snapshot
from tests.support import synthetic
from tests.support.loaded_bodies import bodies_are_loaded_once  # noqa: F401  for all tests here
from tests.support.stored_runs import spec, store


def run(out, env_spec=None, failures=(), status="finished", **changes):
    """The synthetic run in a folder, with the agents of `env_spec`."""
    result = synthetic.result(num_evaluations=5, num_agents=4 if env_spec is None else env_spec.num_agents)
    result = dataclasses.replace(result, **changes)
    env_spec = result.spec if env_spec is None else env_spec
    with run_folder.lock_folder(out, run_record.record(env_spec, result.algorithm, result.config, result.seeds)):
        run_tables.write_metrics(out, env_spec.agents, result.seeds, result.env_steps, result.metrics)
        run_tables.write_evaluation(out, result.seeds, result.evaluation)
        run_folder.set_status(out, status, failures)
    return out


def sweep(out, failures=(), seeds=(4, 7, 9), env_spec=None, done=None):
    """A sweep of eight settings whose returns rise with their index; its first `done` settings alone, or all, are done.

    Each setting is a shard; its runs are the synthetic ones, whose failures are told by the metric `nonfinite`.
    """
    env_spec = synthetic.spec() if env_spec is None else env_spec
    fields = [{"kl_budget": 0.01 * (k + 1), "hidden_sizes": [8 + k]} for k in range(8)]
    config = TrustRegionConfig(total_env_steps=20 * 4096, eval_episodes=2).replace(**fields[0])
    sizes = {str(k + 1): len(seeds) for k in range(8)}
    document = run_record.record(env_spec, "hatrpo_w", config, seeds, settings=fields, sizes=sizes)
    with run_folder.lock_folder(out, document, run_record.SWEEP):
        record = run_record.read_record(out, run_record.SWEEP)
        fingerprint = run_record.fingerprint(record.document)
        for k, runs in enumerate(shards.grouped([config.replace(**one) for one in fields], seeds)[:done]):
            (shard,) = shards.cut(out, k + 1, runs, len(seeds), fingerprint)
            checkpoints.save(shard.folder, _snapshot(k, seeds, failures), shard.fingerprint, keep=1)
        result = sweep_folders.read(out)
        if done is None:
            sweep_tables.write(result)
        run_folder.set_status(out, "interrupted" if done else "finished", failures, run_record.SWEEP, result.timing)
    return result


def _snapshot(k, seeds, failures):
    """A complete shard of setting k; every shard took the same seconds."""
    generator = np.random.default_rng(k)
    of_run = synthetic.result(num_seeds=len(seeds), num_updates=20)
    metrics = {name: values for name, values in of_run.metrics.items() if name != "episode_return"}
    for name in ("kl_threshold", "kl", "kl_total"):
        metrics[name] = metrics[name] * (k + 1) / 8
    nonfinite = np.zeros((len(seeds), 20, 5), bool)
    for failure in failures:
        if failure.setting == k:
            nonfinite[seeds.index(failure.seed), failure.update, WATCHED.index(failure.quantity)] = True
    returns = (k + generator.normal(size=(len(seeds), 20)).cumsum(-1)).astype(np.float32)
    episodes = np.stack([returns[:, :2], returns[:, -2:]], axis=1)
    evaluation = Evaluation(np.array([0, 20]), np.array([0, 20 * 4096]), episodes, np.full(episodes.shape, 100.0))
    metrics |= {"episode_return": returns, "nonfinite": nonfinite}
    return Snapshot(20, {}, metrics, evaluation, (), Timing(1.0, 2.0, 3.0))


class _Page(html.parser.HTMLParser):
    """What a page is made of; a tag that is closed in the wrong order is an error."""

    _VOID = {"meta", "img", "br", "link", "input"}

    def __init__(self, content):
        super().__init__()
        self.tags, self.pictures, self.references, self.words, self._open = [], [], [], [], []
        self.feed(content)
        assert not self._open, self._open
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.references += [
            attributes[name] for name in ("src", "href", "data", "action", "srcset") if name in attributes
        ]
        if tag == "img":
            self.pictures.append(attributes)
        if tag not in self._VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] != "style":
            self.words.append(data)
        elif self._open:
            assert "url(" not in data and "@import" not in data


def page_of(path):
    page = _Page(path.read_text(encoding="utf-8"))
    assert all(reference.startswith("data:image/") for reference in page.references), "self-contained"
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    for picture in page.pictures:
        kind, data = picture["src"].removeprefix("data:image/").split(";base64,")
        content = base64.b64decode(data, validate=True)
        if kind == "svg+xml":
            root = xml.etree.ElementTree.fromstring(content)
            assert root.tag.endswith("svg") and len(list(root.iter())) > 20
            outside = [v for e in root.iter() for k, v in e.attrib.items() if k.endswith("href") and v[:1] != "#"]
            assert all(reference.startswith("data:image/png") for reference in outside)
        else:
            Image.open(io.BytesIO(content)).verify()
        assert picture["alt"]
    return page


@pytest.fixture(scope="module")
def ant(tmp_path_factory):
    """A run on a body; made once, since making the body takes seconds."""
    return run(tmp_path_factory.mktemp("runs") / "ant", envs.make("ant_4x2").spec)


@pytest.mark.slow
def test_the_page_of_a_run_on_a_body(ant, capsys):
    assert main.main(["report", str(ant)]) == 0
    assert capsys.readouterr().out.startswith(f"{ant / 'report.html'}: ")
    page = page_of(ant / "report.html")
    alternatives = " ".join(picture["alt"] for picture in page.pictures)
    assert len(page.pictures) == 5 and "body of ant_4x2" in alternatives and "Share of the KL budget" in alternatives
    record = run_record.read_record(ant)
    for agent, colour in zip(record.spec.agents, agent_colours(4)):
        assert agent in page.text and colour.lower() in (ant / "report.html").read_text()
    result = stored_runs.read_result(ant)
    shares = result.metrics["kl_threshold"].mean((0, 1)) / result.config.kl_budget
    assert all(f"{100 * share:.1f} %" in page.text for share in shares)
    accepted = (result.metrics["step_fraction"] > 0).mean((0, 1))
    assert all(f"{100 * share:.1f} %" in page.text for share in accepted)
    for field in dataclasses.fields(record.config):
        assert field.name in page.text and " ".join(field.metadata["help"].split()) in page.text
    assert all(version in page.text for version in record.document["versions"].values() if version)
    assert "Not at their default: total_env_steps" in page.text and "95 % percentile bootstrap" in page.text


def test_failures_and_status_are_shown(tmp_path):
    out = run(tmp_path / "run", failures=[Failure(2, 6, "critic")], status="interrupted")
    page = page_of(pages.write(out, tmp_path / "page.html"))
    assert "Seed 2 failed: critic was not finite in update 7" in page.text and "interrupted" in page.text
    assert not (out / "report.html").exists()
    page = page_of(pages.write(run(tmp_path / "all", failures=[Failure(s, 1, "actor") for s in range(4)])))
    assert "Seed 3 failed" in page.text and len(page.pictures) == 2


def test_first_order_runs_show_clipped_samples(tmp_path):
    result = synthetic.result(kl=False)
    metrics = result.metrics | {"clip_fraction": np.full((4, 30, 4), 0.125)}
    config = FirstOrderConfig(total_env_steps=30 * 4096)
    page = page_of(pages.write(run(tmp_path / "run", algorithm="happo", config=config, metrics=metrics)))
    assert [picture["alt"] for picture in page.pictures][2] == "Samples beyond the clip" and "12.5 %" in page.text
    assert "line searches" not in page.text


def test_a_run_that_stopped_before_its_first_update_has_a_page(tmp_path):
    out = store(tmp_path / "run", [[1.0]], steps=[0], status="interrupted")
    (out / "metrics.csv").unlink()
    assert "times unknown" in page_of(pages.write(out)).text


def test_markup_in_names_stays_text(tmp_path):
    odd = spec("<script>alert(1)</script>", note="a & b")
    page = page_of(pages.write(store(tmp_path / "run", np.zeros((1, 3)), spec=odd)))
    assert "<script>alert(1)</script>" in page.text and "a & b" in page.text
    written = (tmp_path / "run" / "report.html").read_text()
    assert "<script" not in written and "&lt;script&gt;" in written and "a &amp; b" in written


@pytest.mark.slow
def test_the_page_of_a_sweep(ant, tmp_path):
    """On a body; the agents of the best three settings have pictures, all settings a row."""
    result = sweep(tmp_path / "sweep", [SweepFailure(7, 9, 3, "reward")], env_spec=run_record.read_record(ant).spec)
    assert main.main(["report", str(tmp_path / "sweep")]) == 0
    page = page_of(tmp_path / "sweep" / "report.html")
    alternatives = [picture["alt"] for picture in page.pictures]
    titles = [
        "Final return by swept field",
        "Learning curves by setting",
        "The body of ant_4x2, limbs coloured by agent",
    ]
    assert alternatives[:3] == titles
    best = sweep_tables.ranking(result)[:3]
    for k, share, steps in zip(best, alternatives[3::2], alternatives[4::2], strict=True):
        assert share.startswith(f"Setting {k} (kl_budget={0.01 * (k + 1)}, hidden_sizes={8 + k}). Share of the KL")
        assert steps.endswith("Line searches that found a step")
    assert "setting 7, seed 9 failed: reward was not finite in update 4" in page.text
    for row in sweep_tables.rows(result):
        assert " ".join(row) in page.text
    for k in range(8):
        one = result.setting(k)
        healthy = [(k, seed) != (7, 9) for seed in result.seeds]
        spent = one.metrics["kl"][healthy].sum(-1).mean() / one.config.kl_budget
        accepted = (one.metrics["step_fraction"][healthy] > 0).mean((0, 1)).mean()
        assert f"hidden_sizes={8 + k} " in page.text and f"{100 * spent:.1f} % {100 * accepted:.1f} %" in page.text
    assert "8 settings, 3 seeds each, 81,920 env steps per run" in page.text and "kl_budget swept" in page.text
    assert "Swept: kl_budget, hidden_sizes. Not at their default: total_env_steps, eval_episodes." in page.text
    assert "train 16.0 s, evaluate 24.0 s; 122,880 env steps/s" in page.text


def test_the_page_of_an_interrupted_sweep_shows_its_finished_runs(tmp_path):
    sweep(tmp_path / "some", done=2)
    page = page_of(pages.write(tmp_path / "some"))
    assert "interrupted" in page.text and "6 of 24 runs are finished; only these have a final return" in page.text
    assert len(page.pictures) == 2 + 2 * 2
    with run_folder.lock_folder(tmp_path / "none", _document(tmp_path / "some"), run_record.SWEEP):
        page = page_of(pages.write(tmp_path / "none"))
    assert "0 of 24 runs are finished" in page.text and not page.pictures


def _document(out):
    return {**run_record.read_record(out, run_record.SWEEP).document, "sizes": {}}


def test_a_sweep_without_its_pieces_is_its_tables(tmp_path):
    result = sweep(tmp_path / "sweep", [SweepFailure(7, 9, 3, "reward")])
    shutil.rmtree(tmp_path / "sweep" / "pieces")
    stored = sweep_folders.read(tmp_path / "sweep")
    for name in ("spec", "algorithm", "config", "settings", "seeds", "failures", "timing"):
        assert getattr(stored, name) == getattr(result, name), name
    assert sweep_tables.rows(stored) == sweep_tables.rows(result)
    np.testing.assert_allclose(stored.metrics["episode_return"], result.metrics["episode_return"], rtol=1e-6)
    page = page_of(pages.write(tmp_path / "sweep"))
    assert "Share of the KL" not in page.text and len(page.pictures) == 2
    (tmp_path / "sweep" / "curves.csv").unlink()
    page = page_of(pages.write(tmp_path / "sweep"))
    assert "stored without curves" in page.text and len(page.pictures) == 1


@pytest.mark.parametrize(
    "words, message",
    [
        ("report {full}", "is not a run folder: it has no run.json"),
        ("report {full}/none", "there is no run folder"),
        ("report {run} --out {full}/page.pdf", "it must be a .html file in an existing folder"),
        ("show {full}/nothing", "there is no run folder"),
    ],
)
def test_bad_input_gives_a_one_line_error(words, message, tmp_path, capsys):
    stored = store(tmp_path / "run", np.zeros((1, 3)))
    assert main.main(words.format(run=stored, full=tmp_path).split()) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_show(tmp_path, capsys):
    out = run(tmp_path / "run", failures=[Failure(2, 6, "critic")])
    assert main.main(["show", str(out)]) == 0
    text = capsys.readouterr().out
    assert "hatrpo_w on legs, seeds 0, 1, 2, 3" in text and "status       finished" in text and "backend spring" in text
    assert "    total_env_steps = 122880" in text and "kl_budget" not in text
    assert "seed 2 failed: critic was not finite" in text and "mean ± std" in text
    assert main.main(["show", str(out), "--all"]) == 0
    text = capsys.readouterr().out
    assert "  * total_env_steps = 122880" in text and "    kl_budget = 0.08" in text


def test_show_of_a_run_without_results(tmp_path, capsys):
    with run_folder.lock_folder(
        tmp_path / "new", run_record.record(spec(), "hatrpo", marl_kl.TrustRegionConfig(), (0,))
    ):
        assert main.main(["show", str(tmp_path / "new")]) == 0
    assert "nothing is saved yet" in capsys.readouterr().out


def test_runs_in_a_folder_are_listed(tmp_path, capsys):
    run(tmp_path / "ant" / "done")
    with run_folder.lock_folder(
        tmp_path / "killed", run_record.record(spec(), "hatrpo", marl_kl.TrustRegionConfig(), (0,))
    ):
        pass
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "run.json").write_text("{")
    assert main.main(["show", str(tmp_path)]) == 0
    found = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = {line[0]: line[1:] for line in found if line and line[0] in ("ant/done", "killed", "damaged")}
    assert rows["ant/done"][:4] == ["legs", "hatrpo_w", "finished", "4"] and "±" in rows["ant/done"]
    assert rows["killed"] == ["legs", "hatrpo", "stopped", "1", "0", "of", "1,000,000", "-"]
    assert rows["damaged"] == ["cannot", "be", "read"]
    (tmp_path / "empty").mkdir()
    assert main.main(["show", str(tmp_path / "empty")]) == 2 and "is not a run folder" in capsys.readouterr().err


_LOOK = """<iframe id="page" src="{page}"></iframe><pre id="found">waiting</pre><script>
document.getElementById("page").onload = () => {{
  const pictures = [...document.getElementById("page").contentDocument.images];
  document.getElementById("found").textContent = "widths " + pictures.map(picture => picture.naturalWidth).join(" ");
}};
</script>"""


@pytest.mark.slow
def test_a_browser_draws_every_picture(ant, tmp_path):
    """Of a sweep's page, which has all kinds of pictures that a run's has."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("there is no Chromium here to open the page with")
    sweep(tmp_path / "sweep", env_spec=run_record.read_record(ant).spec)
    page = pages.write(tmp_path / "sweep", tmp_path / "page.html")
    (tmp_path / "look.html").write_text(_LOOK.format(page=page.name))
    options = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--allow-file-access-from-files",
        f"--user-data-dir={tmp_path / 'browser'}", "--virtual-time-budget=20000", "--enable-logging=stderr",
        "--dump-dom",
    ]  # fmt: skip
    done = subprocess.run(
        [chromium, *options, (tmp_path / "look.html").as_uri()], capture_output=True, text=True, timeout=300
    )
    found = done.stdout.split('id="found">')[1].split("<")[0].split()
    assert found[0] == "widths", done.stderr
    widths = list(map(int, found[1:]))
    assert len(widths) == len(page_of(page).pictures) == 9 and min(widths) > 100
    assert "CONSOLE" not in done.stderr, "the browser reports no errors"
