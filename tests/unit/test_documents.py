"""What these documents name is there: tests, other files, modules, and targets of the Makefile."""

from __future__ import annotations

import re

import pytest

from tests.unit.named_tests import ROOT, functions_of, paths_of

PROOFS = ("docs/guarantees.md", "tests/simulation/README.md", "tests/chaos/README.md")
MAPS = ("docs/architecture.md", "CONTRIBUTING.md")
DOCUMENTS = (*PROOFS, *MAPS)
PACKAGE = ROOT / "prefect_vertex_launch"
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
# Whatever looks like a test, so that one with a slip in its name is not passed over.
A_TEST = r"`([^`\n]*(?:test_|::)[^`\n]*)`"
A_TARGET = r"(?:`|^ {4})make ([^`\s]+)"
A_MODULE = r"-m ((?:tests|benchmarks|prefect_vertex_launch)[\w.]*)"
A_LINK = r"\]\((?!https?:|#)([^)#]+)"
A_PATH = r"`((?:[a-z_]+/)+(?:[a-z_]+\.(?:py|md|yaml))?|[A-Za-z_]+\.toml)`"


def named(pattern: str) -> list[tuple[str, str]]:
    """What the documents name in this way, each with the document that does."""
    return [
        (document, name)
        for document in DOCUMENTS
        for name in sorted(set(re.findall(pattern, (ROOT / document).read_text(), re.MULTILINE)))
    ]


@pytest.mark.parametrize(("document", "test"), named(A_TEST))
def test_a_test_that_is_named_exists(document: str, test: str):
    file, separator, function = test.partition("::")
    paths = paths_of(file)
    assert len(paths) == 1, "the name of a file, without its directory, has to say which one is meant"
    functions = functions_of(paths[0])
    if separator:
        assert function in functions
    else:
        assert any(name.startswith("test_") for name in functions)


@pytest.mark.parametrize(("document", "target"), named(A_TARGET))
def test_a_target_that_is_named_exists(document: str, target: str):
    assert target in TARGETS


@pytest.mark.parametrize(("document", "module"), named(A_MODULE))
def test_a_module_that_is_named_exists(document: str, module: str):
    path = ROOT / module.replace(".", "/")
    assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


@pytest.mark.parametrize(("document", "link"), named(A_LINK))
def test_a_link_leads_to_a_file(document: str, link: str):
    assert ((ROOT / document).parent / link).exists()


@pytest.mark.parametrize(("document", "path"), [each for each in named(A_PATH) if each[0] in MAPS])
def test_a_path_that_a_map_names_exists(document: str, path: str):
    assert (PACKAGE / path).exists() or (ROOT / path).exists()


def test_the_map_shows_every_package():
    text = (ROOT / "docs" / "architecture.md").read_text()
    packages = {path.parent for path in PACKAGE.rglob("__init__.py")} - {PACKAGE}
    assert {package.name for package in packages if f"{package.name}/" not in text} == {"graphql"}


@pytest.mark.parametrize("pattern", [A_TEST, A_TARGET, A_LINK])
def test_each_document_names_something_in_each_way(pattern: str):
    """If the patterns found nothing, the tests above would prove nothing."""
    assert {document for document, _ in named(pattern)} >= set(PROOFS)


def test_the_maps_name_paths():
    assert {document for document, _ in named(A_PATH)} >= set(MAPS)


def test_something_is_named_in_each_way():
    assert any("::" in test for _, test in named(A_TEST))
    assert any("::" not in test for _, test in named(A_TEST))
    assert named(A_MODULE)
