# ROS 2 Jazzy + CUDA for robots with an NVIDIA GPU. Build: docker build -t robolearn .
# Run: docker run --gpus all --network host --ipc host --shm-size 256m -it robolearn
# Here ROS comes from the ROS image and the Python packages from the lock file without the ROS wheels: never both in one process.
FROM nvidia/cuda:12.8.1-runtime-ubuntu24.04
ENV DEBIAN_FRONTEND=noninteractive LANG=C.UTF-8
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates curl gnupg \
 && curl -fsSL https://raw.githubusercontent.com/ros/rosdistro/master/ros.key -o /usr/share/keyrings/ros-archive-keyring.gpg \
 && echo "deb [signed-by=/usr/share/keyrings/ros-archive-keyring.gpg] http://packages.ros.org/ros2/ubuntu noble main" \
      > /etc/apt/sources.list.d/ros2.list \
 && apt-get update && apt-get install -y --no-install-recommends \
      git python3-venv python3-pip libegl1 libgl1 libosmesa6 \
      ros-jazzy-ros-base ros-jazzy-launch-xml ros-jazzy-launch-testing ros-jazzy-control-msgs ros-jazzy-foxglove-bridge \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/robolearn
COPY . .
# --system-site-packages lets the environment see rclpy once ROS is sourced; packages of the lock file win over the system's.
RUN python3 -m venv --system-site-packages .venv && .venv/bin/pip install --no-cache-dir uv \
 && grep -oE '^[A-Za-z0-9._-]+==[^ ]+' requirements.lock | grep -vE '^(ros-|empy|lark-parser)' > /tmp/constraints.txt \
 && .venv/bin/uv pip install --python .venv/bin/python --no-cache -c /tmp/constraints.txt -e . rosbags==0.11.9
# colcon of this Python, so that the nodes' executables start the interpreter that holds robolearn.
RUN .venv/bin/uv pip install --python .venv/bin/python --no-cache colcon-common-extensions \
 && . /opt/ros/jazzy/setup.sh && cd ros_ws && ../.venv/bin/colcon build
SHELL ["/bin/bash", "-c"]
ENTRYPOINT ["/bin/bash", "-c", "source /opt/ros/jazzy/setup.bash && source /opt/robolearn/ros_ws/install/setup.bash && source /opt/robolearn/.venv/bin/activate && exec \"$@\"", "--"]
CMD ["bash"]
