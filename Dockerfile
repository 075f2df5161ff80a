# For a machine without a GPU:
#   docker build -t mushrooms .
#   mkdir -p runs
#   docker run --rm --shm-size 2g --user "$(id -u)" -e HOME=/tmp -v /PATH/OF/PHOTOS:/photos:ro -v "$PWD/runs:/app/runs" mushrooms main.py --data /photos --model tf_efficientnet_lite0 --image-size 224 --epochs 8 --batch 32 --mixup 0 --rho 0
#   docker run --rm --shm-size 2g --user "$(id -u)" -e HOME=/tmp -v /PATH/OF/PHOTOS:/photos:ro -v "$PWD/runs:/app/runs" mushrooms predict.py /photos
FROM python:3.12-slim
WORKDIR /app
COPY requirements.txt .
# torch first, from its own index: PyPI's brings 6 GB of CUDA
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu "torch>=2.10" "torchvision>=0.25" \
    && pip install --no-cache-dir -r requirements.txt
COPY . .
RUN useradd --create-home --uid 1000 mushrooms && mkdir -p runs && chown 1000 runs
USER 1000
ENTRYPOINT ["python"]
CMD ["main.py", "--help"]
