# Two commands on a fresh Debian 12 as root do everything: `make demo` and `make test`.
SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin

# The worker node: QEMU and libvirt, and what builds libvirt's Python binding.
PACKAGES := python3-venv python3-dev gcc pkg-config libvirt-dev \
  qemu-system-x86 qemu-utils ovmf libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients dnsmasq-base \
  iptables iproute2 \
  mmdebstrap kmod e2fsprogs dosfstools mtools fdisk binutils cryptsetup-bin
# Only the tests: a real PostgreSQL, OCI registry, TPM, Prometheus and browser, an EFI program, what checks domain XML
# and looks at networks.
TEST_PACKAGES := postgresql docker-registry systemd-boot-efi swtpm libxml2-utils nftables curl chromium prometheus

# Only the container image.
IMAGE_PACKAGES := buildah mmdebstrap
# Whose SDKs are in it, and where it is built.
CLOUDS := aws azure ibmcloud libvirt
IMAGE_DIR := build/image

.PHONY: help demo serve test soak image bench lint format lock lab clean

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

demo: lab ## two sandboxes on real VMs, a killed service, nothing left behind
	$(BIN)/python -m tests.demo

serve: lab ## the service on this machine's libvirt, in the foreground
	LIBVIRT_URI=qemu:///system CLOUD_PROVIDER=libvirt $(BIN)/caa image ensure
	LIBVIRT_URI=qemu:///system CLOUD_PROVIDER=libvirt $(BIN)/caa serve

# Three at once on two cores: much of it waits, for guests that boot and for a service's next round. At most three
# that fail are run again alone, and named.
test: lint lab ## everything, with the count at the end
	@$(call install,$(TEST_PACKAGES))
	$(BIN)/pytest -n 3 || $(BIN)/python -m tests.again $$?

soak: lab ## the long fault runs, and the image
	@$(call install,$(IMAGE_PACKAGES))
	CAA_SOAK=1 $(BIN)/pytest tests/faults tests/controller tests/clouds/test_service_reload.py tests/clouds/test_service_on_azure.py \
	  tests/clouds/test_openapi.py tests/vm/test_libvirt_launch.py tests/vm/test_libvirt_termination.py \
	  tests/clouds/test_azure_scarcity.py tests/clouds/test_image_aws.py \
	  tests/clouds/test_image_azure.py tests/clouds/test_image_ibm.py tests/clouds/test_image_builders.py \
	  tests/clouds/test_image_hardships.py \
	  tests/vm/test_image_verity.py tests/vm/test_image_arm64.py tests/kube/test_service_on_kubernetes.py

image: ## the container image caa:latest with the SDKs of CLOUDS, in buildah's storage below build/image; prints its size
	@$(call install,$(IMAGE_PACKAGES))
	sh docker/build.sh $(IMAGE_DIR) "$(CLOUDS)" caa:latest

bench: $(VENV)/.installed ## timings, as ratios measured in one run
	$(BIN)/python -m tests.bench.bench_relay
	$(BIN)/python -m tests.bench.bench_sizing
	$(BIN)/python -m tests.bench.bench_tunnel
	$(BIN)/python -m tests.bench.bench_metadata
	$(BIN)/python -m tests.bench.bench_restart
	$(BIN)/python -m tests.bench.bench_burst

lint: $(VENV)/.installed ## style, types and layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed ## put the code into shape
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lab: $(VENV)/.installed ## libvirt with its network and pool, as far as they do not run yet
	tests/lab/host.sh up

lock: ## write requirements.lock anew; needs uv
	uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --no-header -q -o requirements.lock

clean: ## remove what make made here
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

define install
missing=$$(dpkg-query -W -f '$${Package} $${db:Status-Abbrev}\n' $(1) 2>/dev/null | awk '$$2 == "ii" {print $$1}' \
  | sort | comm -13 - <(printf '%s\n' $(1) | sort)); \
if [ -n "$$missing" ]; then \
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
fi
endef

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(call install,$(PACKAGES))
	python3 -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@
