# The service on the shipped birds, or on models that are mounted: docs/serving.md.
FROM python:3.12-slim

RUN pip install --no-cache-dir uv \
    && useradd --uid 1000 --create-home viscoin
WORKDIR /app
COPY pyproject.toml hatch_build.py README.md LICENSE requirements.txt main.py ./
COPY viscoin viscoin
COPY stylegan2_ada stylegan2_ada
# what pyproject.toml asks for, in the pinned versions; without the tools of developers
RUN uv pip install --system --no-cache --constraint requirements.txt ".[app]"

USER 1000
ENV HOME=/tmp XDG_CACHE_HOME=/tmp/cache OMP_WAIT_POLICY=PASSIVE
WORKDIR /data
VOLUME ["/data/runs"]
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
ENTRYPOINT ["viscoin", "serve"]
CMD ["--host", "0.0.0.0", "--token-file", "/run/secrets/viscoin_token"]
