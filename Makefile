# One command each: `make predict` sets up and runs the main job, `make test` sets up and passes the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: predict test check setup clean

predict: $(VENV)/main
	$(BIN)/python cli.py predict --arch kimi-linear-48b-a3b --hw h100-sxm --context 4k..1M --phase decode

test: $(VENV)/test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

$(VENV)/main: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[plot]"
	$(BIN)/python -m compileall -q costmodel
	touch $@

$(VENV)/test: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[plot,test]"
	$(BIN)/python -m compileall -q costmodel
	touch $(VENV)/main $@

clean:
	rm -rf $(VENV) build dist
