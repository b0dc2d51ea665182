"""Names, parameters, equality and copies of rules; the command line's spelling; the table."""

import copy
import io
import pathlib
import pickle

import pytest
import torch
from problems import shown

import rtrl_ext as rx
from rtrl_ext import rules
from rtrl_ext.rules import (
    BPTT,
    MDGL,
    TBPTT,
    Custom,
    EProp,
    Immediate,
    MatchedNoise,
    ModProp,
    Projected,
    Scaled,
    SnAp1,
)
from rtrl_ext.rules._table import CELLS as TABLE_CELLS

TYPES = torch.tensor([0, 1, 0])


def send_nothing(carry, delta, signal, saved):
    return None, None


EVERY = [
    BPTT(),
    TBPTT(3),
    Immediate(),
    EProp(0.5),
    EProp(modulator=torch.ones(2, 3)),
    SnAp1(),
    MDGL(TYPES),
    ModProp(0.1, 2, TYPES),
    Custom("mine", "unit", send_nothing),
    Scaled(EProp(), 0.5),
    Projected(EProp(), "orthogonal"),
    MatchedNoise(EProp(), 3),
]


@pytest.mark.parametrize("rule", EVERY, ids=shown)
def test_rules_are_values(rule):
    for twin in (copy.deepcopy(rule), copy.copy(rule), pickle.loads(pickle.dumps(rule))):
        assert twin == rule and hash(twin) == hash(rule) and repr(twin) == repr(rule)
    assert all(rule != other for other in EVERY if other is not rule)
    assert rule != "bptt"
    with pytest.raises(AttributeError):
        rule.anything = 1


def test_equality_looks_at_tensors():
    assert MDGL(TYPES) == MDGL(TYPES.clone())
    assert MDGL(TYPES) != MDGL(torch.tensor([0, 1, 1]))
    assert MDGL(TYPES) != MDGL(cell_specific=True)
    assert EProp(modulator=torch.ones(2, 3)) != EProp(modulator=torch.ones(2, 3).double())


def test_repr_shows_what_differs_from_the_defaults():
    assert repr(BPTT()) == "BPTT()"
    assert repr(TBPTT(4)) == "TBPTT(k=4)"
    assert repr(ModProp(0.5, cell_specific=True)) == "ModProp(mu=0.5, cell_specific=True)"
    assert repr(MDGL(TYPES)) == "MDGL(cell_types=<int64 tensor (3,)>)"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bptt", BPTT()),
        ("BPTT", BPTT()),
        ("immediate", Immediate()),
        ("eprop", EProp()),
        ("rflo", EProp()),
        ("three-factor", EProp()),
        ("three_factor", EProp()),
        ("snap1", SnAp1()),
    ],
)
def test_get_by_name(name, expected):
    assert rules.get(name) == expected


def test_get_with_parameters():
    assert rules.get("tbptt", k=5) == TBPTT(5)
    assert rules.get("modprop", mu=0.5, cell_specific=True) == ModProp(0.5, cell_specific=True)
    rule = EProp(0.2)
    assert rules.get(rule) is rule


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: rules.get("backprop"), ValueError, "'backprop'.*bptt, tbptt, immediate, eprop"),
        (lambda: rules.get("backprop"), ValueError, "unknown rule 'backprop'"),
        (lambda: rules.get("tbptt"), ValueError, r"'tbptt' needs k.*tbptt:k="),
        (lambda: rules.get("mdgl"), ValueError, "needs cell_types .* or cell_specific=True"),
        (lambda: rules.get("modprop"), ValueError, "needs cell_types .* or cell_specific=True"),
        (lambda: rules.get("bptt", k=3), ValueError, "'bptt' has no parameter k"),
        (lambda: rules.get(BPTT(), k=3), ValueError, "came with the rule object"),
        (lambda: rules.get(3), TypeError, "rule is a int"),
        (lambda: rules.get("custom"), ValueError, "unknown rule"),
        (lambda: TBPTT(0), ValueError, "k is 0; expected at least 1"),
        (lambda: TBPTT(2.0), TypeError, "k is a float"),
        (lambda: EProp(1.5), ValueError, "readout_decay is 1.5"),
        (lambda: EProp("x"), TypeError, "readout_decay is a str"),
        (lambda: EProp(modulator=[1.0]), TypeError, "modulator is a list"),
        (lambda: EProp(modulator=torch.ones(2, 3, dtype=torch.int64)), TypeError, "modulator"),
        (lambda: EProp(modulator=torch.ones(2, 2, 2, 2)), ValueError, "modulator has shape"),
        (
            lambda: EProp(modulator=torch.ones(3)),
            ValueError,
            r"modulator has shape \(3,\); exp",
        ),
        (lambda: MDGL(TYPES, cell_specific=True), ValueError, "both cell_types and cell_specific"),
        (lambda: MDGL(TYPES.float()), TypeError, "cell_types has dtype torch.float32"),
        (lambda: MDGL(TYPES[None]), ValueError, r"cell_types has shape \(1, 3\)"),
        (lambda: MDGL(torch.tensor([0, -1])), ValueError, "cell_types holds -1"),
        (lambda: MDGL(cell_specific=1), TypeError, "cell_specific is a int"),
        (lambda: ModProp(float("nan"), cell_specific=True), ValueError, "mu is nan"),
        (lambda: ModProp(taps=0, cell_specific=True), ValueError, "taps is 0"),
        (lambda: ModProp(cell_specific=True, form="book"), ValueError, "form is 'book'"),
        (lambda: ModProp(taps=2, cell_specific=True, form="code"), ValueError, "taps is 2"),
        (lambda: Custom("a", "leak", send_nothing), ValueError, "local is 'leak'"),
        (lambda: Custom("a", "unit", 3), TypeError, "transport is a int"),
        (lambda: Custom("a", 3, send_nothing), TypeError, "local is a int"),
        (lambda: Scaled(3, 1.0), TypeError, "scaled: rule is a int; expected a name or an object"),
        (lambda: Scaled("sgd", 1.0), ValueError, "scaled: rule: unknown rule 'sgd'; known rules"),
        (lambda: Scaled("tbptt", 1.0), ValueError, "scaled: rule: rule 'tbptt' needs k"),
        (lambda: Scaled("bptt", "rho", 3), TypeError, "scaled: reference is a int"),
        (lambda: Projected(None), TypeError, "projected: rule is a NoneType"),
        (lambda: MatchedNoise("sgd", 1), ValueError, "matched-noise: rule: unknown rule 'sgd'"),
        (lambda: Scaled(EProp(), "sigma"), ValueError, "factor is 'sigma'"),
        (lambda: Scaled(EProp(), None), TypeError, "factor is a NoneType"),
        (lambda: Scaled(EProp(), float("inf")), ValueError, "factor is inf"),
        (lambda: Scaled(EProp(), 1.0, BPTT()), ValueError, "reference came without"),
        (lambda: Projected(EProp(), "both"), ValueError, "keep is 'both'"),
        (lambda: MatchedNoise(EProp(), -1), ValueError, "seed is -1"),
        (lambda: MatchedNoise(EProp(), 0.5), TypeError, "seed is a float"),
    ],
)
def test_refusals(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("eprop", EProp()),
        ("tbptt:k=5", TBPTT(5)),
        ("eprop:readout_decay=0.3", EProp(0.3)),
        ("mdgl:cell_specific=true", MDGL(cell_specific=True)),
        (
            "modprop:mu=0.3:taps=2:cell_specific=True:form=paper",
            ModProp(0.3, 2, cell_specific=True),
        ),
        ("mdgl:cell_types=[0, 1, 0]", MDGL(TYPES)),
    ],
)
def test_parse(text, expected):
    assert rules.parse(text) == expected


@pytest.mark.parametrize("text", ["tbptt:5", "tbptt:k=5:k=6", "tbptt:=5", "nothing:k=1", "tbptt"])
def test_parse_refuses(text):
    with pytest.raises(ValueError, match="rule"):
        rules.parse(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tbptt:k=x", "rule 'tbptt:k=x': tbptt: k is a str; expected an int"),
        ("modprop:mu=abc:cell_specific=true", "rule 'modprop:mu=abc:cell_specific=true': .* mu is"),
    ],
)
def test_parse_shows_text_of_the_wrong_type(text, words):
    with pytest.raises(ValueError, match=words):
        rules.parse(text)


def test_wrappers_take_names():
    assert Scaled("eprop", 2.0) == Scaled(EProp(), 2.0)
    assert Scaled("BPTT", "rho", reference="rflo") == Scaled(BPTT(), "rho", EProp())
    assert Projected("snap1").rule == SnAp1()
    assert repr(MatchedNoise("eprop", 1)) == "MatchedNoise(rule=EProp(), seed=1)"
    assert rx.LeakyRNN(2, 3, rule=Projected("eprop")).rule == Projected(EProp())


def test_table_lists_every_rule():
    rows = {row["name"]: row for row in rules.table()}
    assert list(rows)[:7] == ["bptt", "tbptt", "immediate", "eprop", "snap1", "mdgl", "modprop"]
    assert {"custom", "scaled", "projected", "matched-noise"} <= set(rows)
    for row in rows.values():
        assert "LeakyRNN" in row["cells"] and row["cost"]
        only = row["name"] in ("kernl", "dni")
        assert row["modes"][0] == ("streaming" if only else "sequence")
    streaming = [name for name, row in rows.items() if "streaming" in row["modes"]]
    assert streaming[:6] == ["tbptt", "immediate", "eprop", "snap1", "mdgl", "modprop"]
    assert not {"bptt", "custom", "scaled", "projected", "matched-noise"} & set(streaming)
    on_lru = [name for name, row in rows.items() if "LRU" in row["cells"]]
    assert on_lru[:4] == ["bptt", "tbptt", "immediate", "snap1"]
    assert on_lru[-3:] == ["scaled", "projected", "matched-noise"]
    assert rows["eprop"]["aliases"] == ["rflo", "three-factor"]
    assert rows["tbptt"]["parameters"] == "(k: int)"


def some(cls):
    """A rule of a class, for 4 units."""
    given = {
        "TBPTT": {"k": 2}, "SnAp": {"k": 2}, "OK": {"rank": 2}, "MDGL": {"cell_specific": True},
        "ModProp": {"cell_specific": True},
        "Custom": {"name": "c", "local": "unit", "transport": lambda *_: (None, None)},
        "Scaled": {"rule": "bptt", "factor": 2.0}, "Projected": {"rule": "bptt"},
        "MatchedNoise": {"rule": "bptt", "seed": 1},
    }  # fmt: skip
    return cls(**given.get(cls.__name__, {}))


def test_matrix_of_rules_and_cells_is_what_modules_take():
    """Every pair: the module takes the rule where the table says so, and refuses it elsewhere."""
    found = [vars(rules)[name] for name in rules.__all__]
    kinds = [c for c in found if isinstance(c, type) and issubclass(c, rules.Rule)]
    classes = {getattr(c, "name", "custom"): c for c in kinds if c is not rules.Rule}
    rows = rules.table()
    cells = {c for row in rows for c in row["cells"]}
    assert cells <= set(TABLE_CELLS)
    for row in rows:
        rule = some(classes[row["name"]])
        for cell in cells:
            net = getattr(rx, cell)(3, 4)
            if cell in row["cells"]:
                net.rule = rule
                y = net(torch.randn(3, 2, 3))[0]
                if "sequence" in row["modes"]:
                    y.sum().backward()
                    assert all(p.grad is not None for p in net.parameters())
                else:
                    with pytest.raises(RuntimeError, match="in streaming mode only"):
                        y.sum().backward()
            else:
                with pytest.raises(ValueError, match=f"not defined for {cell}; it goes with .*; "):
                    net.rule = rule
                with pytest.raises(ValueError, match="not defined for"):
                    getattr(rx, cell)(3, 4, rule=rule)
    lines = repr(rows).splitlines()
    assert lines[0].split() == ["rule", *TABLE_CELLS, "modes"] and len(lines) == len(rows) + 1


def test_docs_show_the_matrix():
    page = (pathlib.Path(__file__).parents[2] / "docs" / "rules.md").read_text()
    assert rules.table().to_markdown() in page


def test_rule_of_a_module_is_checked_at_construction_and_assignment():
    with pytest.raises(ValueError, match=r"cell_types has 3 entries; expected .* \(4,\)"):
        rx.LeakyRNN(2, 4, rule=MDGL(TYPES))
    net = rx.LeakyRNN(2, 4, rule="rflo")
    assert net.rule == EProp()
    with pytest.raises(ValueError, match="unknown rule"):
        net.rule = "backprop"
    with pytest.raises(ValueError, match="cell_types"):
        net.rule = Projected(MDGL(TYPES))
    assert net.rule == EProp()
    net.rule = TBPTT(2)
    assert net.rule == TBPTT(2)


def test_illegal_pair_names_the_legal_ones():
    with pytest.raises(ValueError, match="'mdgl' is not defined for GRU; it goes with LeakyRNN"):
        MDGL(cell_specific=True).check("GRU", 3)


@pytest.mark.parametrize("cell", ["GRU", "LSTM", "LRU"])
@pytest.mark.parametrize("name", ["mdgl", "MDGL", "modprop"])
def test_a_name_is_refused_for_its_cell_before_its_parameters(cell, name):
    words = f"'{name.lower()}' is not defined for {cell}"
    with pytest.raises(ValueError, match=words):
        getattr(rx, cell)(3, 4, rule=name)
    with pytest.raises(ValueError, match="mdgl needs cell_types"):
        rx.LeakyRNN(3, 4, rule="mdgl")


def test_module_with_a_rule_can_be_saved():
    net = rx.LeakyRNN(2, 3, rule=MDGL(TYPES), leak=0.3)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert loaded.rule == net.rule and torch.equal(loaded.leak, net.leak)
