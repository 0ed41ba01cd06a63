# One command each: `make predict` sets up and runs the main job, `make test` sets up and passes the tests,
# `make validate-cpu` measures every operator on this machine's processor, fits, predicts and compares.
# `make shipped SILICON=DIR` fits and writes again all that rests on measured tables: an hour and a half on two cores.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: predict test validate-cpu shipped clean

predict: $(VENV)/main
	$(BIN)/python cli.py predict --arch kimi-linear-48b-a3b --hw h100-sxm --context 4k..1M --phase decode

test: $(VENV)/test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist worksteal

MEASURED := $(CURDIR)/build/validate-cpu
validate-cpu: export COSTMODEL_DATA := $(MEASURED)
validate-cpu: export OMP_NUM_THREADS := 1
validate-cpu: $(VENV)/test
	$(BIN)/python cli.py calibrate --device cpu --quick
	$(BIN)/python cli.py predict --arch llama-3.1-8b --hw cpu --context 256..4k --phase all
	$(BIN)/python cli.py validate --measurements $(MEASURED)/measurements/cpu --plot $(MEASURED)/measured.png
	$(BIN)/python cli.py roofline --measurements $(MEASURED)/measurements/cpu --plot $(MEASURED)/roofline.png --worst 10

# Each line stands on what those before it wrote.
CALIBRATED := h100-sxm b200-sxm a100-sxm l40s
shipped: export OMP_NUM_THREADS := 1
shipped: $(VENV)/test
	$(MAKE) -j2 $(CALIBRATED:%=shipped-%)
	$(BIN)/python -m validation.transfers $(SILICON)
	$(BIN)/python cli.py calibrate --from-serving $(SILICON)/systems/silicon_sample.csv --out hardware_profiles/engines/constants
	$(BIN)/python -m validation.siblings $(SILICON)
	rm -rf build/accuracy
	$(BIN)/python -m validation.accuracy $(SILICON)
	$(BIN)/python -m validation.paper_kernels
	$(BIN)/python cli.py claims --record validation/papers/verdicts.yaml
	$(BIN)/python -m costmodel.report.deployments
	$(BIN)/python -m costmodel.report.article
	$(BIN)/python -m validation.console_blocks README.md docs/*.md --write

shipped-%:
	$(BIN)/python cli.py calibrate --from-silicon $(SILICON) --hw $* --out hardware_profiles/calibrations

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
