"""A report as figures, as TensorBoard has it, from callbacks; and what notebooks show of formats, trees and certificates."""

import sys
import types
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

import fpsim
from fpsim.accumulation import Tree
from fpsim.callbacks.reporting import Reporting
from fpsim.numbers.fixed_point import FixedPoint
from fpsim.numbers.formats import FORMATS
from fpsim.report.records import PHASES
from fpsim.report.report import Report
from tests.made_up_reports import HOSTILE, broken, quiet

OBSERVED = ("range", "histograms", "events")


class Writer:
    """What a `SummaryWriter` was handed."""

    def __init__(self):
        self.scalars, self.histograms = {}, {}

    def add_scalar(self, tag, value, step):
        self.scalars[tag, step] = value

    def add_histogram_raw(self, tag, *, bucket_limits, bucket_counts, global_step, **moments):
        self.histograms[tag, global_step] = bucket_limits, bucket_counts, moments


def trained(**policy):
    """A simulation after two steps, in which some gradients underflow."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    sim = fpsim.run(model, fmt="e4m3", inplace=True, observe=OBSERVED, **policy)
    optimizer = torch.optim.SGD(sim.parameters(), lr=0.1)
    with sim:
        for _ in range(2):
            (sim(torch.rand(4, 6)).square().mean() / 64).backward()
            optimizer.step()
    return sim


def test_scalars_are_the_shares_of_a_count_by_hand():
    report, writer = trained().report(), Writer()
    report.to_tensorboard(writer, step=7)
    assert report.total.underflows > 0
    for module in {row.module for row in report.rows}:
        for phase in ("forward", "backward"):
            rows = [row.counts for row in report.rows if (row.module, row.phase) == (module, phase)]
            elements = sum(counts.elements for counts in rows)
            tag = f"underflows/{phase}/{module or '(outside)'}", 7
            if elements:
                assert writer.scalars[tag] == sum(counts.underflows for counts in rows) / elements
            else:
                assert tag not in writer.scalars
    assert writer.scalars["lost/all", 7] == report.total.lost / report.total.updates
    assert len(writer.histograms) == sum(bool(item.histogram.counts) for item in report.distributions)
    for limits, counts, moments in writer.histograms.values():
        spread = np.repeat(np.array(limits) - 0.5, np.array(counts, int))
        assert (moments["min"], moments["max"], moments["num"]) == (spread[0], spread[-1], spread.size)
        assert (moments["sum"], moments["sum_squares"]) == (spread.sum(), (spread**2).sum())


def test_a_folder_is_written_that_tensorboard_reads(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: the extra `tensorboard`")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report, writer = trained().report(), Writer()
    report.to_tensorboard(tmp_path)
    report.to_tensorboard(writer)
    found = EventAccumulator(str(tmp_path)).Reload()
    for (tag, step), value in writer.scalars.items():
        (event,) = found.Scalars(tag)
        assert (event.step, event.value) == (step, np.float32(value)) and step == 2
    assert set(found.Tags()["histograms"]) == {tag for tag, _ in writer.histograms}


def test_figures_show_what_was_observed(tmp_path):
    sim = trained()
    report = sim.report()
    bars = report.plot().axes[0].containers
    rows = [row for row in report.rows if row.range]
    assert sum(map(len, bars)) == len(rows)
    tops = sorted(round(bar.get_y() + bar.get_height(), 6) for group in bars for bar in group)
    wanted = [np.log2([row.range.smallest, row.range.largest]) for row in rows]
    assert tops == sorted(round(float(low + max(high - low, 0.2)), 6) for low, high in wanted)
    for role in ("weight", "activation", "gradient"):
        (image,) = report.plot(role).axes[0].images
        shown = [item for item in report.distributions if item.role == role and item.histogram.counts]
        shares = image.get_array().sum(axis=1)
        assert np.allclose(shares, [1 - item.histogram.zeros / item.histogram.total for item in shown])
    report.plot().savefig(tmp_path / "range.png")
    broken().plot().savefig(tmp_path / "hostile.png")
    with pytest.raises(ValueError, match="no losses"):
        report.plot("losses")
    with pytest.raises(ValueError, match='observe="histograms"'):
        quiet().plot("weight")
    with pytest.raises(ValueError, match="there is no figure 'pie'"):
        report.plot("pie")


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"'\.\[tensorboard\]'"):
        broken().to_tensorboard("folder")
    with pytest.raises(ImportError, match=r"matplotlib.*'\.\[report\]'"):
        broken().plot()


# Callbacks


def test_reporting_writes_every_so_many_steps_and_needs_the_block(tmp_path):
    model = torch.nn.Linear(2, 2)
    sim, writer = fpsim.run(model, fmt="fp16", inplace=True), Writer()
    reporting = Reporting(sim, path=tmp_path / "report.json", writer=writer, every=2)
    with pytest.raises(RuntimeError, match="with sim:"):
        reporting.begin()
    with sim:
        reporting.begin()
        for step in range(1, 4):
            sim(torch.ones(1, 2))
            reporting.end_step(step)
            assert (tmp_path / "report.json").exists() == (step >= 2)
        reporting.write(3)
    assert {step for _, step in writer.scalars} == {2, 3}
    assert Report.from_json((tmp_path / "report.json").read_text()) == reporting.report
    assert {"range", "events"} <= set(reporting.report.observed)
    with pytest.raises(ValueError, match="every"):
        Reporting(sim, every=-1)


def test_a_training_has_one_file_of_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: the extra `tensorboard`")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def steps():
        return [event.step for event in EventAccumulator(str(tmp_path)).Reload().Scalars("overflows/all")]

    sim = fpsim.run(torch.nn.Linear(2, 2), fmt="fp16", inplace=True)
    reporting = Reporting(sim, writer=tmp_path, every=1)
    with sim:
        reporting.begin()
        sim(torch.ones(1, 2))
        for step in (1, 2):
            reporting.end_step(step)
            assert steps() == list(range(1, step + 1))  # there already, should the training fail now
        reporting.end(3)
    assert steps() == [1, 2, 3] and len(list(tmp_path.iterdir())) == 1


@pytest.fixture(scope="module")
def language_model():
    """A function that trains two steps of a small model by the Trainer; inputs that overflow where asked."""
    transformers = pytest.importorskip("transformers", reason="this is a model or the Trainer of transformers")
    pytest.importorskip("accelerate", reason="the Trainer of transformers needs accelerate")

    def train(folder, callbacks, sim_of, scale=1.0):
        transformers.set_seed(0)
        config = transformers.GPT2Config(vocab_size=12, n_positions=8, n_embd=8, n_layer=1, n_head=2)
        model = transformers.GPT2LMHeadModel(config)
        with torch.no_grad():
            model.transformer.wte.weight.mul_(scale)
        sim = sim_of(model)
        data = [{"input_ids": torch.arange(1, 7), "labels": torch.arange(1, 7)}] * 4
        arguments = transformers.TrainingArguments(
            output_dir=str(folder), max_steps=2, per_device_train_batch_size=2, use_cpu=True, report_to=[],
            save_strategy="no", logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = transformers.Trainer(model=model, args=arguments, train_dataset=data, callbacks=callbacks(sim))
        with sim:
            trainer.train()
        return sim

    return train


def test_the_trainer_reports_what_a_simulation_saw_and_stops_where_told(language_model, tmp_path):
    from fpsim.callbacks.trainer import TrainerReporting

    path = tmp_path / "report.json"

    def bf16(model):
        return fpsim.run(model, fmt="bf16", inplace=True)

    sim = language_model(tmp_path, lambda sim: [TrainerReporting(sim, path=path)], bf16)
    report = Report.from_json(path.read_text())
    assert report == sim.report() and report.steps == 2
    assert {"range", "events"} <= set(report.observed) and {row.phase for row in report.rows} == set(PHASES)
    path.unlink()
    with pytest.raises(fpsim.emulation.NonFinite, match="beyond the format's range"):
        language_model(
            tmp_path, lambda sim: [TrainerReporting(sim, on_nonfinite="raise")],
            lambda model: fpsim.run(model, fmt="fp16", inplace=True), scale=1e6,
        )  # fmt: skip


def test_lightning_reports_too(tmp_path):
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")
    from fpsim.callbacks.lightning import LightningReporting

    class Module(lightning.pytorch.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def training_step(self, batch, index):
            return self.layer(batch).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    sim = fpsim.run(Module(), fmt="bf16", inplace=True)
    path = tmp_path / "report.json"
    trainer = lightning.pytorch.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        callbacks=[LightningReporting(sim, path=path)],
    )  # fmt: skip
    with sim:
        trainer.fit(sim.model, torch.utils.data.DataLoader(torch.rand(4, 2), batch_size=2))
    assert Report.from_json(path.read_text()).steps == 2


def test_each_hook_of_lightning_does_its_part(monkeypatch, tmp_path):
    """Without Lightning: its base class has no part in what is done."""
    stand_in = types.ModuleType("lightning.pytorch")
    stand_in.Callback = object
    for name, module in (("lightning", types.ModuleType("lightning")), ("lightning.pytorch", stand_in)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "fpsim.callbacks.lightning", raising=False)
    from fpsim.callbacks.lightning import LightningReporting

    monkeypatch.delitem(sys.modules, "fpsim.callbacks.lightning")
    sim, writer = fpsim.run(torch.nn.Linear(2, 2), fmt="fp16", inplace=True), Writer()
    callback = LightningReporting(sim, writer=writer, every=1)
    with sim:
        callback.on_train_start(None, None)
        sim(torch.ones(1, 2))
        callback.on_train_batch_end(types.SimpleNamespace(global_step=1), None, None, None, 0)
        callback.on_exception(types.SimpleNamespace(global_step=2), None, RuntimeError())
        callback.on_train_end(types.SimpleNamespace(global_step=3), None)
    assert {step for _, step in writer.scalars} == {1, 2, 3}


# Notebooks


class Cells(HTMLParser):
    """The texts of a page, and whether its tags are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.open, self.tags = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.tags.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_formats_show_their_limits():
    for fmt in (*FORMATS.values(), FixedPoint("<i>", 8, 4)):
        texts = Cells(fmt._repr_html_()).texts
        assert texts[0] == fmt.name
        assert float(texts[texts.index("largest") + 1]) == pytest.approx(fmt.max_finite, rel=1e-8)


def test_trees_show_every_leaf_and_addition_of_theirs():
    for nested in (0, (0, 1), ((0, 1), (2, (3, 4, 5))), tuple(range(9))):
        tree = Tree.from_nested(nested)
        drawn = Cells(tree._repr_html_())
        assert sorted(map(int, drawn.texts)) == list(range(tree.leaves))
        additions = str(nested).count("(")
        assert drawn.tags.count("circle") + drawn.tags.count("rect") == additions
    assert "300 leaves" in Tree.from_nested(_chain(300))._repr_html_()
    assert "0 leaves" in Tree.from_nested(())._repr_html_()


def _chain(count):
    nested = (0, 1)
    for leaf in range(2, count):
        nested = (nested, leaf)
    return nested


def test_certificates_show_their_table_and_statement():
    model = torch.nn.Sequential()
    model.add_module(HOSTILE.replace(".", ""), torch.nn.Linear(3, 2))
    certificate = fpsim.certify(model.eval(), torch.ones(1, 3), fmt="fp16")
    texts = Cells(certificate._repr_html_()).texts
    assert texts[0] == str(certificate) and texts[-1] == certificate.statement
    paths = [layer.path or "(model)" for layer in certificate.layers]
    assert [text for text in texts if text in paths] == paths and any("[red]" in path for path in paths)
